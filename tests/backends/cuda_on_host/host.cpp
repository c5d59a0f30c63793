// Runs the threads of a warp as threads of the CPU.
#include <barrier>
#include <thread>
#include <vector>

static std::barrier<> all(32);
static unsigned int values[32];

unsigned int exchange_in_warp(unsigned int thread, unsigned int value, unsigned int distance) {
  values[thread] = value;
  all.arrive_and_wait();
  value = values[thread ^ distance];
  all.arrive_and_wait();
  return value;
}

void run_threads(int threads, void (*run)(void* context, unsigned int thread), void* context) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run, context, i);
  run(context, 0);
  for (auto& other : others) other.join();
}

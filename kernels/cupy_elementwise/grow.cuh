// DropBlock's blocks: the body of an ElementwiseKernel for element i of the mask. See gpudrop.kernels.
const int64 column = i % width, above = i / width, row = above % height;
const int64 seed_rows = height - rows + 1, seed_columns = width - columns + 1;
const int64 first = above / height * seed_rows;
unsigned char keep = 1;
for (int64 r = max(row - rows + 1, 0LL); r <= min(row, seed_rows - 1); ++r) {
  for (int64 c = max(column - columns + 1, 0LL); c <= min(column, seed_columns - 1); ++c) {
    keep &= seeds[(first + r) * seed_columns + c];
  }
}
mask[i] = keep;

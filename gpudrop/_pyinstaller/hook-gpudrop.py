"""What PyInstaller packs of gpudrop: backends, which are imported by name, and sources, which kernels are made of."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

datas = collect_data_files("gpudrop")
hiddenimports = collect_submodules("gpudrop.kernels")
module_collection_mode = "pyz+py"

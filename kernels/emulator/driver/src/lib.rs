//! A `libcuda.so.1` whose device is the PTX emulator.

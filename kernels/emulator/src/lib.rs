//! Runs PTX kernels on a processor, warp by warp, with the checks that a GPU does not make.

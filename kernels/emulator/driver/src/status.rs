//! The statuses of the driver's calls that are used here, by the numbers of cuda.h, and their names.

use std::ffi::CStr;

/// How a call ends when not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

pub const INVALID_VALUE: Status = Status(1);
pub const OUT_OF_MEMORY: Status = Status(2);
pub const NOT_INITIALIZED: Status = Status(3);
pub const NO_DEVICE: Status = Status(100);
pub const INVALID_DEVICE: Status = Status(101);
pub const INVALID_CONTEXT: Status = Status(201);
pub const INVALID_PTX: Status = Status(218);
pub const UNSUPPORTED_PTX_VERSION: Status = Status(222);
pub const INVALID_HANDLE: Status = Status(400);
pub const ILLEGAL_STATE: Status = Status(401);
pub const NOT_FOUND: Status = Status(500);
pub const NOT_READY: Status = Status(600);
pub const ILLEGAL_ADDRESS: Status = Status(700);
pub const LAUNCH_OUT_OF_RESOURCES: Status = Status(701);
pub const LAUNCH_FAILED: Status = Status(719);
pub const NOT_SUPPORTED: Status = Status(801);
pub const CAPTURE_UNSUPPORTED: Status = Status(900);
pub const CAPTURE_INVALIDATED: Status = Status(901);
pub const CAPTURE_WRONG_THREAD: Status = Status(908);
pub const CAPTURED_EVENT: Status = Status(907);

/// The driver's name of a status.
pub fn name(code: i32) -> Option<&'static CStr> {
    Some(match Status(code) {
        Status(0) => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NOT_INITIALIZED => c"CUDA_ERROR_NOT_INITIALIZED",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        UNSUPPORTED_PTX_VERSION => c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        ILLEGAL_STATE => c"CUDA_ERROR_ILLEGAL_STATE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        NOT_READY => c"CUDA_ERROR_NOT_READY",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        LAUNCH_OUT_OF_RESOURCES => c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
        CAPTURE_UNSUPPORTED => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        CAPTURE_INVALIDATED => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        CAPTURE_WRONG_THREAD => c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        CAPTURED_EVENT => c"CUDA_ERROR_CAPTURED_EVENT",
        _ => return None,
    })
}

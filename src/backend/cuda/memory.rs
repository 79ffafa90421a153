//! Memory: buffers on the device, pinned memory of the host.
//!
//! Owns: allocation and its end. Never: what is copied when; streams order that.

use super::{Device, Error};
use cust::memory::{DeviceBuffer, LockedBuffer, mem_get_info};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Bytes on the device, uninitialised at first, aligned to 256.
pub struct Buffer {
    device: Device,
    bytes: ManuallyDrop<DeviceBuffer<u8>>,
}

impl Buffer {
    /// `bytes` is at least 1.
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Buffer, Error> {
        // SAFETY: nothing of it is read here; kernels and copies state what they need.
        let found = unsafe { DeviceBuffer::uninitialized(bytes) };
        let buffer = found.map_err(device.said("cuMemAlloc_v2")).map_err(|error| match error {
            Error::OutOfMemory { call, .. } => {
                let free = mem_get_info().map_or(0, |(free, _)| free);
                Error::OutOfMemory { call, wanted: bytes, free }
            }
            error => error,
        })?;
        Ok(Buffer { device: device.clone(), bytes: ManuallyDrop::new(buffer) })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Where it lies on the device.
    pub fn address(&self) -> u64 {
        self.bytes.as_device_ptr().as_raw()
    }
}

impl Drop for Buffer {
    /// Waits for the work that uses it, as the driver does; not if the device is lost, where that would never end.
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: nothing else drops it, and it is not touched again.
            unsafe { ManuallyDrop::drop(&mut self.bytes) };
        }
    }
}

/// Bytes of the host that the device copies from and to by itself.
pub struct Pinned {
    device: Device,
    bytes: ManuallyDrop<LockedBuffer<u8>>,
}

impl Pinned {
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Pinned, Error> {
        let buffer = LockedBuffer::new(&0, bytes).map_err(device.said("cuMemAllocHost_v2"))?;
        Ok(Pinned { device: device.clone(), bytes: ManuallyDrop::new(buffer) })
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: nothing else drops it. A device that is lost may still write into it: then it stays.
            unsafe { ManuallyDrop::drop(&mut self.bytes) };
        }
    }
}

impl Device {
    /// Memory of the device.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        Buffer::new(self, bytes)
    }

    /// Pinned memory of the host, zeroed.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        Pinned::new(self, bytes)
    }
}

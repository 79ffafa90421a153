//! Memory: buffers on the device, pinned memory of the host.
//!
//! Owns: allocation and its end. Never: what is copied when; streams order that.

use super::{Device, Error};
use cust::memory::{DeviceBuffer, DevicePointer, LockedBuffer, mem_get_info};
use cust::sys;
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
        // `cust` owns the memory; allocated here, since its own call forgets statuses that are younger than it.
        let mut place = 0;
        // SAFETY: the place for the address is ours.
        let status = unsafe { sys::cuMemAlloc_v2(&mut place, bytes) } as i32;
        device.judge("cuMemAlloc_v2", status).map_err(|error| match error {
            Error::OutOfMemory { call, .. } => {
                let free = mem_get_info().map_or(0, |(free, _)| free);
                Error::OutOfMemory { call, wanted: bytes, free }
            }
            error => error,
        })?;
        // SAFETY: so many bytes lie there, and nothing else frees them. Nothing of them is read here.
        let buffer = unsafe { DeviceBuffer::from_raw_parts(DevicePointer::from_raw(place), bytes) };
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
    /// `bytes` is at least 1.
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Pinned, Error> {
        let mut place = std::ptr::null_mut();
        // SAFETY: the place for the pointer is ours.
        let status = unsafe { sys::cuMemAllocHost_v2(&mut place, bytes) } as i32;
        device.judge("cuMemAllocHost_v2", status)?;
        let place = place.cast::<u8>();
        // SAFETY: so many bytes lie there, zeroed before anything reads them, and nothing else frees them.
        let buffer = unsafe {
            place.write_bytes(0, bytes);
            LockedBuffer::from_raw_parts(place, bytes)
        };
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

//! Memory: buffers on the device, pinned memory of the host.
//!
//! Owns: allocation and its end. Never: what is copied when; streams order that.

use super::plan::Memory;
use super::{Device, Error, driver};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes on the device, uninitialised at first, aligned to 256.
pub struct Buffer {
    device: Device,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// `bytes` is at least 1.
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Buffer, Error> {
        let mut address = 0;
        // SAFETY: the place for the address is ours.
        let status = unsafe { driver::cuMemAlloc_v2(&mut address, bytes) };
        device.judge("cuMemAlloc_v2", status).map_err(|error| match error {
            Error::OutOfMemory { call, .. } => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: both places are ours. Should it fail too, no byte is free.
                let _ = unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) };
                Error::OutOfMemory { call, wanted: bytes, free }
            }
            error => error,
        })?;
        Ok(Buffer { device: device.clone(), address, bytes })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Where it lies on the device.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Buffer {
    /// Waits for the work that uses it, as the driver does; not if the device is lost, where that would never end.
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: it is ours and not used again. A status has nobody to go to.
            let _ = unsafe { driver::cuMemFree_v2(self.address) };
        }
    }
}

/// Bytes of the host that the device copies from and to by itself.
pub struct Pinned {
    device: Device,
    place: NonNull<u8>,
    bytes: usize,
}

impl Pinned {
    /// `bytes` is at least 1.
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Pinned, Error> {
        let mut place = std::ptr::null_mut();
        // SAFETY: the place for the pointer is ours.
        let status = unsafe { driver::cuMemAllocHost_v2(&mut place, bytes) };
        device.judge("cuMemAllocHost_v2", status)?;
        let call = "cuMemAllocHost_v2";
        let place =
            NonNull::new(place.cast::<u8>()).ok_or(Error::OutOfMemory { call, wanted: 0, free: 0 })?;
        // SAFETY: so many bytes lie there; they are zeroed before anything reads them.
        unsafe { place.write_bytes(0, bytes) };
        Ok(Pinned { device: device.clone(), place, bytes })
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes lie there until it is dropped; none is uninitialised.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nothing else names them here.
        unsafe { std::slice::from_raw_parts_mut(self.place.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: it is ours and not used again. A device that is lost may still write into it: then it stays. A status
            // has nobody to go to.
            let _ = unsafe { driver::cuMemFreeHost(self.place.as_ptr().cast()) };
        }
    }
}

impl Device {
    /// Bytes that are free, of how many.
    pub(super) fn memory(&self) -> Result<Memory, Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places are ours.
        self.judge("cuMemGetInfo_v2", unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(Memory { free, total })
    }

    /// Memory of the device.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        Buffer::new(self, bytes)
    }

    /// Pinned memory of the host, zeroed.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        Pinned::new(self, bytes)
    }
}

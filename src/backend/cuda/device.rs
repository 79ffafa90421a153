//! The GPU: opened, described, and held by everything that lies on it.
//!
//! Owns: the primary context, and whether the device is lost. Never: memory, modules or streams; they own themselves
//! and hold this.

use super::error::{self, CAPABILITY_AT_LEAST, DRIVER_AT_LEAST, OVERLAP_CAPABILITY, OVERLAP_DRIVER, Status};
use super::{Error, driver, leave};
use cust::sys;
use std::cell::Cell;
use std::ffi::CStr;
use std::path::Path;
use std::rc::Rc;

/// The box has one GPU; where there are more, CUDA_VISIBLE_DEVICES chooses.
const ORDINAL: i32 = 0;
/// Room for a device's name, more than any has.
const NAME_BYTES: usize = 256;

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct Properties {
    pub name: String,
    /// Major and minor.
    pub capability: (u32, u32),
    /// Bytes.
    pub memory: usize,
    pub multiprocessors: u32,
    /// The CUDA version that the driver offers: 12040 is 12.4.
    pub driver: i32,
}

/// An open device. Clones are the same one.
///
/// Its context is current for the thread that opened it, and for no other: neither it nor anything that holds it leaves
/// that thread, which is what `Rc` sees to.
///
/// ```compile_fail,E0277
/// fn elsewhere(_: impl Send) {}
/// fn try_it(device: tartlet::backend::cuda::Device) {
///     elsewhere(device)
/// }
/// ```
#[derive(Clone)]
pub struct Device(Rc<Opened>);

struct Opened {
    /// Whose primary context is held. Not given back once the device is lost: the driver would wait for work that never ends.
    raw: sys::CUdevice,
    properties: Properties,
    lost: Cell<bool>,
}

impl Device {
    /// Opens the first device of the driver at `libcuda`, or of the one that is found.
    pub fn open(libcuda: Option<&Path>) -> Result<Device, Error> {
        driver::load(libcuda)?;
        Device::first().map_err(|error| match (error, libcuda) {
            // A library was found and is none after all: whoever named it hears its name.
            (Error::NoDriver { .. }, Some(path)) => {
                Error::NoDriver { given: Some(path.to_owned()), why: "it is a toolkit's stub".to_owned() }
            }
            (error, _) => error,
        })
    }

    fn first() -> Result<Device, Error> {
        let mut version = 0;
        // SAFETY: the place for an i32 is ours.
        error::judge("cuDriverGetVersion", unsafe { driver::cuDriverGetVersion(&mut version) })?;
        if version < DRIVER_AT_LEAST {
            return Err(Error::DriverTooOld { version });
        }
        // SAFETY: the driver allows this at any time, and more than once.
        error::judge("cuInit", unsafe { driver::cuInit(0) })?;
        let mut count = 0;
        // SAFETY: as above.
        error::judge("cuDeviceGetCount", unsafe { driver::cuDeviceGetCount(&mut count) })?;
        if count == 0 {
            return Err(Error::NoDevice);
        }
        let mut raw = 0;
        // SAFETY: as above.
        error::judge("cuDeviceGet", unsafe { driver::cuDeviceGet(&mut raw, ORDINAL) })?;
        let properties = properties(raw, version)?;
        if properties.capability < CAPABILITY_AT_LEAST {
            return Err(Error::DeviceTooOld { name: properties.name, capability: properties.capability });
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is the driver's own, the place for the handle is ours.
        let status = unsafe { driver::cuDevicePrimaryCtxRetain(&mut context, raw) };
        error::judge("cuDevicePrimaryCtxRetain", status)?;
        let opened = Opened { raw, properties, lost: Cell::new(false) };
        // SAFETY: the context is the one just retained.
        error::judge("cuCtxSetCurrent", unsafe { driver::cuCtxSetCurrent(context) })?;
        Ok(Device(Rc::new(opened)))
    }

    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Whether a launch can begin before the one before it has ended.
    pub fn overlaps(&self) -> bool {
        let Properties { capability, driver, .. } = self.0.properties;
        capability >= OVERLAP_CAPABILITY && driver >= OVERLAP_DRIVER
    }

    /// Whether a call found that the device is lost.
    pub fn is_lost(&self) -> bool {
        self.0.lost.get()
    }

    /// What the status of a call means; a status that ends the device is remembered.
    pub(super) fn judge(&self, call: &'static str, status: Status) -> Result<(), Error> {
        error::judge(call, status).map_err(|error| self.note(error))
    }

    /// Passes an error on; one that ends the device is remembered.
    pub(super) fn note(&self, error: Error) -> Error {
        if error.is_final() {
            self.abandon();
        }
        error
    }

    /// From now on the device is not spoken to: work may be on it that nobody can wait for.
    pub(super) fn abandon(&self) {
        self.0.lost.set(true);
        leave::without_the_driver();
    }
}

fn properties(device: sys::CUdevice, driver: i32) -> Result<Properties, Error> {
    let number = |attribute| {
        let mut value = 0;
        // SAFETY: the place for an i32 is ours, the device is the driver's own.
        let status = unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) };
        error::judge("cuDeviceGetAttribute", status).map(|()| u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; NAME_BYTES];
    // SAFETY: as above; the driver writes no more than it has room for, a NUL at the end.
    let status = unsafe { driver::cuDeviceGetName(name.as_mut_ptr().cast(), NAME_BYTES as i32, device) };
    error::judge("cuDeviceGetName", status)?;
    let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
    let mut memory = 0;
    // SAFETY: as above.
    error::judge("cuDeviceTotalMem_v2", unsafe { driver::cuDeviceTotalMem_v2(&mut memory, device) })?;
    use sys::CUdevice_attribute_enum as Attribute;
    Ok(Properties {
        name: name.into_owned(),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory,
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        driver,
    })
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.lost.get() {
            // SAFETY: it was retained once, and nobody holds the device any more. A status has nobody to go to.
            let _ = unsafe { driver::cuDevicePrimaryCtxRelease_v2(self.raw) };
        }
    }
}

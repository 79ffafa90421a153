//! The GPU: opened, described, and held by everything that lies on it.
//!
//! Owns: the primary context, and whether the device is lost. Never: memory, modules or streams; they own themselves
//! and hold this.

use super::error::{self, CAPABILITY_AT_LEAST, DRIVER_AT_LEAST};
use super::{Error, driver};
use cust::error::CudaError;
use cust::sys;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The box has one GPU; where there are more, CUDA_VISIBLE_DEVICES chooses.
const ORDINAL: u32 = 0;

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

/// An open device. Clones are the same one. It is used by the thread that opened it.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

struct Opened {
    /// Whose primary context is held. Not given back once the device is lost: the driver would wait for work that never ends.
    raw: sys::CUdevice,
    properties: Properties,
    lost: AtomicBool,
}

impl Device {
    /// Opens the first device of the driver at `libcuda`, or of the one that is found.
    pub fn open(libcuda: Option<&Path>) -> Result<Device, Error> {
        driver::load(libcuda)?;
        let mut version = 0;
        // SAFETY: the place for an i32 is ours.
        error::judge("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) } as i32)?;
        if version < DRIVER_AT_LEAST {
            return Err(Error::DriverTooOld { version });
        }
        // Not `cust::init`, which forgets statuses that are younger than it.
        // SAFETY: the driver allows this at any time, and more than once.
        error::judge("cuInit", unsafe { sys::cuInit(0) } as i32)?;
        if cust::device::Device::num_devices().map_err(said("cuDeviceGetCount"))? == 0 {
            return Err(Error::NoDevice);
        }
        let device = cust::device::Device::get_device(ORDINAL).map_err(said("cuDeviceGet"))?;
        let number = |attribute| {
            let mut value = 0;
            // SAFETY: the place for an i32 is ours, the device is the driver's own.
            let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) };
            error::judge("cuDeviceGetAttribute", status as i32).map(|()| u32::try_from(value).unwrap_or(0))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let properties = Properties {
            name: device.name().map_err(said("cuDeviceGetName"))?,
            capability: (
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory: device.total_memory().map_err(said("cuDeviceTotalMem_v2"))?,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            driver: version,
        };
        if properties.capability < CAPABILITY_AT_LEAST {
            return Err(Error::DeviceTooOld { name: properties.name, capability: properties.capability });
        }
        // Not `cust`'s context either, for the same reason; one that sets it without looking, too.
        let (raw, mut context) = (device.as_raw(), std::ptr::null_mut());
        // SAFETY: the device is the driver's own, the place for the handle is ours.
        let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, raw) } as i32;
        error::judge("cuDevicePrimaryCtxRetain", status)?;
        let opened = Opened { raw, properties, lost: AtomicBool::new(false) };
        // SAFETY: the context is the one just retained.
        error::judge("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) } as i32)?;
        Ok(Device(Arc::new(opened)))
    }

    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Whether a call found that the device is lost.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// What the status of a call means; a status that ends the device is remembered.
    pub(super) fn judge(&self, call: &'static str, code: i32) -> Result<(), Error> {
        error::judge(call, code).map_err(|error| self.note(error))
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
        self.0.lost.store(true, Ordering::Relaxed);
    }
}

/// `cust` numbers its errors as the driver does.
fn said(call: &'static str) -> impl FnOnce(CudaError) -> Error {
    move |error| Error::of(call, error as i32)
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !*self.lost.get_mut() {
            // SAFETY: it was retained once, and nobody holds the device any more. A status has nobody to go to.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.raw) };
        }
    }
}

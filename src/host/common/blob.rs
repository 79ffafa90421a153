//! `blob` and `blob-result`: bytes that guests pass around without looking at them.

use crate::exchange::mailbox::Receive;
use crate::host::abi::{Borrow, Own};
use crate::host::held::{Charge, Meter};
use crate::host::lists::{Bytes, Gather, Long};
use crate::host::wasi::io::Pollable;
use crate::host::{Cx, Interface, Trap};
use crate::runtime::table::Resource;
use std::sync::Arc;

/// Immutable bytes on the host's side.
#[derive(Debug)]
pub struct Blob {
    pub bytes: Arc<[u8]>,
    _held: Charge,
}

impl Resource for Blob {
    const NAME: &'static str = "blob";
}

impl Blob {
    pub fn new(bytes: Arc<[u8]>, meter: &Meter) -> Result<Blob, Trap> {
        let held = meter.charge(bytes.len())?;
        Ok(Blob { bytes, _held: held })
    }

    /// One that counts with nobody's.
    #[cfg(test)]
    pub fn nobodys(bytes: impl Into<Arc<[u8]>>) -> Blob {
        let quotas = crate::quota::Quotas::default();
        let meter = Meter::new(&quotas, crate::runtime::account::Account::alone().memory(&quotas));
        Blob::new(bytes.into(), &meter).expect("it is small enough")
    }
}

/// A blob that is to come from the client.
pub struct BlobResult(pub Arc<Receive<Arc<[u8]>>>);

impl Resource for BlobResult {
    const NAME: &'static str = "blob-result";
}

impl Drop for BlobResult {
    fn drop(&mut self) {
        // A pollable of it may outlive it, and must not keep its blob from the next receive.
        self.0.abandon();
    }
}

pub(super) fn functions(interface: Interface) -> Interface {
    interface
        .resource::<Blob>()
        .resource::<BlobResult>()
        .gather("[constructor]blob", new)
        .call("[method]blob.read", read)
        .call("[method]blob.size", size)
        .call("[method]blob-result.pollable", pollable)
        .call("[method]blob-result.get", get)
}

fn new(_: &mut Cx, bytes: Long<u8>) -> Result<Gather<u8, Own<Blob>>, Trap> {
    bytes.then(|cx, bytes| Blob::new(bytes.into(), &cx.held).map(Own))
}

/// What there is of `n` bytes from `offset` on; past the end, nothing.
fn read(cx: &mut Cx, blob: Borrow<Blob>, offset: u64, n: u64) -> Result<Bytes, Trap> {
    let bytes = cx.table.get(&blob)?.bytes.clone();
    let len = bytes.len() as u64;
    let (start, end) = (offset.min(len), offset.saturating_add(n).min(len));
    Ok(Bytes(bytes, start as usize..end as usize))
}

fn size(cx: &mut Cx, blob: Borrow<Blob>) -> Result<u64, Trap> {
    Ok(cx.table.get(&blob)?.bytes.len() as u64)
}

fn pollable(cx: &mut Cx, result: Borrow<BlobResult>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(cx.table.get(&result)?.0.clone())))
}

/// The blob, once.
fn get(cx: &mut Cx, result: Borrow<BlobResult>) -> Result<Option<Own<Blob>>, Trap> {
    let bytes = cx.table.get(&result)?.0.take();
    bytes.map(|bytes| Blob::new(bytes, &cx.held).map(Own)).transpose()
}

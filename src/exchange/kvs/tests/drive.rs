//! A disk in memory whose power can be cut at any operation.
//!
//! Owns: what has reached the medium, and what has only been written. Never: what is written on it.
//!
//! What was written since the last sync survives a power cut or not, sector by sector, as a real disk has it.

use super::super::file::Open;
use crate::model::toy::Random;
use redb::StorageBackend;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// Clones are one drive.
#[derive(Clone, Debug, Default)]
pub struct Drive(Arc<(Mutex<Media>, Condvar)>);

#[derive(Debug, Default)]
struct Media {
    /// What a read gives.
    now: Vec<u8>,
    /// What a power cut leaves at least.
    synced: Vec<u8>,
    /// Written since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
    /// Up to where it was ever written.
    used: usize,
    /// Writes and syncs so far.
    steps: u64,
    stops_at: Option<u64>,
    full: bool,
    sync_fails: bool,
    reads_fail: bool,
    /// Syncs wait while this is so.
    held: bool,
    waiting: bool,
}

impl Media {
    fn alive(&self) -> Result<()> {
        match self.stops_at {
            Some(at) if self.steps >= at => Err(Error::other("the power is gone")),
            _ => Ok(()),
        }
    }

    fn step(&mut self) -> Result<()> {
        self.alive()?;
        self.steps += 1;
        Ok(())
    }
}

impl Drive {
    /// Opens what is on this drive.
    pub fn open(&self) -> Open {
        let drive = self.clone();
        Box::new(move |builder| builder.create_with_backend(drive.clone()))
    }

    /// Everything fails from this write or sync on.
    pub fn stop_at(&self, step: u64) {
        self.media().stops_at = Some(step);
    }

    /// Whether there is no room where nothing was written yet.
    pub fn set_full(&self, full: bool) {
        self.media().full = full;
    }

    /// Of those that have not begun.
    pub fn fail_next_sync(&self) {
        self.media().sync_fails = true;
    }

    pub fn fail_next_read(&self) {
        self.media().reads_fail = true;
    }

    /// Holds syncs back, or lets them go on.
    pub fn hold(&self, held: bool) {
        self.media().held = held;
        self.0.1.notify_all();
    }

    /// Until a sync is held back.
    pub fn wait_for_sync(&self) {
        let waits = |media: &mut Media| !media.waiting;
        drop(self.0.1.wait_while(self.media(), waits).expect("unpoisoned"));
    }

    /// The drive that is found when the power comes back.
    pub fn after_power_cut(&self, random: &mut Random) -> Drive {
        let media = self.media();
        let mut left = media.synced.clone();
        for (offset, bytes) in &media.pending {
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = offset + i * SECTOR;
                if random.below(2) == 0 && at + sector.len() <= left.len() {
                    left[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Drive::holding(left)
    }

    /// A drive with these bytes on it.
    pub fn holding(bytes: Vec<u8>) -> Drive {
        let media = Media { now: bytes.clone(), used: bytes.len(), synced: bytes, ..Media::default() };
        Drive(Arc::new((Mutex::new(media), Condvar::new())))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.media().now.clone()
    }

    fn media(&self) -> MutexGuard<'_, Media> {
        self.0.0.lock().expect("unpoisoned")
    }
}

impl StorageBackend for Drive {
    fn len(&self) -> Result<u64> {
        Ok(self.media().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut media = self.media();
        media.alive()?;
        if std::mem::take(&mut media.reads_fail) {
            return Err(Error::other("a bad block"));
        }
        let at = offset as usize;
        out.copy_from_slice(media.now.get(at..at + out.len()).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut media = self.media();
        media.alive()?;
        media.now.resize(len as usize, 0);
        media.synced.resize(len as usize, 0);
        let within = |(offset, bytes): &(usize, Vec<u8>)| offset + bytes.len() <= len as usize;
        media.pending.retain(within);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut media = self.media();
        media.step()?;
        let at = offset as usize;
        if media.full && at + data.len() > media.used {
            return Err(ErrorKind::StorageFull.into());
        }
        media.used = media.used.max(at + data.len());
        media.now.get_mut(at..at + data.len()).ok_or(ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        media.pending.push((at, data.to_owned()));
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        let mut media = self.media();
        let fails = std::mem::take(&mut media.sync_fails);
        media.waiting = true;
        self.0.1.notify_all();
        let mut media = self.0.1.wait_while(media, |media| media.held).expect("unpoisoned");
        media.waiting = false;
        media.step()?;
        if fails {
            media.pending.clear(); // as Linux does: what a sync could not write is not tried again
            return Err(Error::other("the disk does not answer"));
        }
        for (at, bytes) in std::mem::take(&mut media.pending) {
            media.synced[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

//! `wasi:filesystem`: an empty one. The preview-1 adapter imports it whether the program opens files or not.
//!
//! No directory is given, so no descriptor ever exists and nothing here but `get-directories` can be reached with a
//! valid handle; the functions are there to be linked.

use super::io::IoError;
use super::streams::{InputStream, OutputStream};
use crate::host::abi::{Borrow, Flat, Lift, Lower, Own, Source, Target, Value};
use crate::host::shape::Shape;
use crate::host::{Cx, Interface, Trap};
use crate::runtime::table::Resource;
use wasmi::Val;

/// No value of it exists.
enum Descriptor {}

impl Resource for Descriptor {
    const NAME: &'static str = "descriptor";
}

/// No value of it exists.
enum DirectoryEntryStream {}

impl Resource for DirectoryEntryStream {
    const NAME: &'static str = "directory-entry-stream";
}

type File = Borrow<Descriptor>;
type Answer<T> = Result<T, Case<37>>;
type Filesize = u64;
type Datetime = (u64, u32);
type PathFlags = Flag<1>;
type Kind = Case<8>;
type Stat = (Kind, u64, Filesize, Option<Datetime>, Option<Datetime>, Option<Datetime>);
type MetadataHash = (u64, u64);

pub fn interfaces() -> Vec<Interface> {
    let types = Interface::new("wasi:filesystem/types@0.2")
        .resource::<Descriptor>()
        .resource::<DirectoryEntryStream>()
        .refuse::<(File, Filesize), Answer<Own<InputStream>>>("[method]descriptor.read-via-stream", NO_FILES)
        .refuse::<(File, Filesize), Answer<Own<OutputStream>>>(
            "[method]descriptor.write-via-stream",
            NO_FILES,
        )
        .refuse::<(File,), Answer<Own<OutputStream>>>("[method]descriptor.append-via-stream", NO_FILES)
        .refuse::<(File, Filesize, Filesize, Case<6>), Answer<()>>("[method]descriptor.advise", NO_FILES)
        .refuse::<(File,), Answer<()>>("[method]descriptor.sync-data", NO_FILES)
        .refuse::<(File,), Answer<Flag<6>>>("[method]descriptor.get-flags", NO_FILES)
        .refuse::<(File,), Answer<Kind>>("[method]descriptor.get-type", NO_FILES)
        .refuse::<(File, Filesize), Answer<()>>("[method]descriptor.set-size", NO_FILES)
        .refuse::<(File, NewTimestamp, NewTimestamp), Answer<()>>("[method]descriptor.set-times", NO_FILES)
        .refuse::<(File, Filesize, Filesize), Answer<(Vec<u8>, bool)>>("[method]descriptor.read", NO_FILES)
        .refuse::<(File, Vec<u8>, Filesize), Answer<Filesize>>("[method]descriptor.write", NO_FILES)
        .refuse::<(File,), Answer<Own<DirectoryEntryStream>>>("[method]descriptor.read-directory", NO_FILES)
        .refuse::<(File,), Answer<()>>("[method]descriptor.sync", NO_FILES)
        .refuse::<(File, String), Answer<()>>("[method]descriptor.create-directory-at", NO_FILES)
        .refuse::<(File,), Answer<Stat>>("[method]descriptor.stat", NO_FILES)
        .refuse::<(File, PathFlags, String), Answer<Stat>>("[method]descriptor.stat-at", NO_FILES)
        .refuse::<(File, PathFlags, String, NewTimestamp, NewTimestamp), Answer<()>>(
            "[method]descriptor.set-times-at",
            NO_FILES,
        )
        .refuse::<(File, PathFlags, String, File, String), Answer<()>>("[method]descriptor.link-at", NO_FILES)
        .refuse::<(File, PathFlags, String, Flag<4>, Flag<6>), Answer<Own<Descriptor>>>(
            "[method]descriptor.open-at",
            NO_FILES,
        )
        .refuse::<(File, String), Answer<String>>("[method]descriptor.readlink-at", NO_FILES)
        .refuse::<(File, String), Answer<()>>("[method]descriptor.remove-directory-at", NO_FILES)
        .refuse::<(File, String, File, String), Answer<()>>("[method]descriptor.rename-at", NO_FILES)
        .refuse::<(File, String, String), Answer<()>>("[method]descriptor.symlink-at", NO_FILES)
        .refuse::<(File, String), Answer<()>>("[method]descriptor.unlink-file-at", NO_FILES)
        .refuse::<(File, File), bool>("[method]descriptor.is-same-object", NO_FILES)
        .refuse::<(File,), Answer<MetadataHash>>("[method]descriptor.metadata-hash", NO_FILES)
        .refuse::<(File, PathFlags, String), Answer<MetadataHash>>(
            "[method]descriptor.metadata-hash-at",
            NO_FILES,
        )
        .refuse::<(Borrow<DirectoryEntryStream>,), Answer<Option<(Kind, String)>>>(
            "[method]directory-entry-stream.read-directory-entry",
            NO_FILES,
        )
        .call("filesystem-error-code", error_code);
    let preopens = Interface::new("wasi:filesystem/preopens@0.2").call("get-directories", directories);
    vec![types, preopens]
}

const NO_FILES: &str = "there are no files here";

fn directories(_: &mut Cx) -> Result<Vec<(Own<Descriptor>, String)>, Trap> {
    Ok(vec![])
}

/// No error of ours comes from a file.
fn error_code(cx: &mut Cx, error: Borrow<IoError>) -> Result<Option<Case<37>>, Trap> {
    cx.table.get(&error)?;
    Ok(None)
}

/// An `enum` of N cases whose meaning nobody here needs.
struct Case<const N: usize>(u8);

/// `flags` of N, at most eight.
struct Flag<const N: usize>(u8);

macro_rules! byte {
    ($type:ident, $shape:ident) => {
        impl<const N: usize> Value for $type<N> {
            const SIZE: usize = 1;
            const ALIGN: usize = 1;
            const FLAT: usize = 1;
            fn shape() -> Shape {
                Shape::$shape(N)
            }
        }
        impl<const N: usize> Lift for $type<N> {
            fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap> {
                u8::lift(from, flat).map($type)
            }
            fn load(from: &mut Source<'_>, at: usize) -> Result<Self, Trap> {
                u8::load(from, at).map($type)
            }
        }
        impl<const N: usize> Lower for $type<N> {
            fn lower(self, into: &mut Target<'_>) -> Result<Val, Trap> {
                self.0.lower(into)
            }
            fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
                self.0.store(into, at)
            }
        }
    };
}

byte!(Case, Enum);
byte!(Flag, Flags);

/// `new-timestamp`, only ever skipped.
struct NewTimestamp;

impl Value for NewTimestamp {
    const SIZE: usize = 24;
    const ALIGN: usize = 8;
    const FLAT: usize = 3;
    fn shape() -> Shape {
        Shape::Variant(vec![None, None, Some(Datetime::shape())])
    }
}

impl Lift for NewTimestamp {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap> {
        <(u32, u64, u32)>::lift(from, flat).map(|_| NewTimestamp)
    }
    fn load(_: &mut Source<'_>, _: usize) -> Result<Self, Trap> {
        Ok(NewTimestamp)
    }
}

//! The files that one model is cut into: what they are called, and that they belong together.
//!
//! Owns: `NAME-00001-of-00003.gguf` and the keys `split.*` (as `gguf-split` and PyPI `gguf` write them). Never: the
//! inside of a file (`shard.rs`).
//!
//! The first file holds all metadata; each holds its number, from 0, and how many files and tensors the model has.

use std::path::{Path, PathBuf};

use super::gguf::{GgufError, Value};
use super::shard::{Bytes, Names, Shard};
use crate::limits;

/// What a file says about the set it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    /// Of this file, from 0.
    number: u32,
    /// Files of the set: 2 or more.
    pub count: u32,
    /// Tensors of all files; older tools left it out.
    tensors: Option<u32>,
}

impl Split {
    /// `None` for a model in one file.
    pub fn of(shard: &Shard) -> Result<Option<Split>, GgufError> {
        let Some(count) = whole(shard, "split.count")?.filter(|&count| count > 1) else { return Ok(None) };
        if count > limits::GGUF_SHARDS {
            let found = format!("the whole number {count}");
            return Err(GgufError::Kind { key: "split.count".into(), want: LIMIT, found });
        }
        let missing = || GgufError::Missing { key: "split.no".into() };
        let number = whole(shard, "split.no")?.ok_or_else(missing)?;
        Ok(Some(Split { number, count, tensors: whole(shard, "split.tensors.count")? }))
    }

    /// Where the files of the set are, given the path of the one that says this.
    pub fn paths(&self, path: &Path) -> Result<Vec<PathBuf>, GgufError> {
        let (number, count) = (self.number.saturating_add(1), self.count);
        let stem = stem(path, number, count).ok_or_else(|| GgufError::Shard {
            file: file_name(path),
            what: format!(
                "it is file {number} of {count} of a model, but its name does not end in `{}`, so that the others \
                 cannot be found",
                suffix(number, count)
            ),
        })?;
        Ok((1..=count).map(|n| path.with_file_name(format!("{stem}{}", suffix(n, count)))).collect())
    }

    /// Reads all files of the set in their order. `open` hands out the bytes of one of them.
    pub fn read(
        &self,
        paths: &[PathBuf],
        open: impl Fn(&Path) -> Result<Bytes, GgufError>,
    ) -> Result<(Vec<Shard>, Names), GgufError> {
        let (mut shards, mut names) = (Vec::new(), Names::new());
        for (number, path) in paths.iter().enumerate() {
            let refuse = |what: String| GgufError::Shard { file: file_name(path), what };
            let named = |error: GgufError| match error {
                GgufError::Open { .. } => {
                    refuse(format!("{error}; the model's {} files belong in one folder", self.count))
                }
                error => refuse(error.to_string()),
            };
            let shard = Shard::read(open(path).map_err(named)?, number as u32, &mut names).map_err(named)?;
            let want = Split { number: number as u32, ..*self };
            match Split::of(&shard).map_err(named)? {
                Some(found) if found == want => {}
                Some(found) => return Err(refuse(format!("it is {found}, but should be {want}"))),
                None => return Err(refuse(format!("it is a model of its own, but should be {want}"))),
            }
            if names.len() > limits::GGUF_TENSORS {
                let limit = limits::GGUF_TENSORS;
                return Err(refuse(format!(
                    "with it the model has {} tensors; the limit is {limit}",
                    names.len()
                )));
            }
            shards.push(shard);
        }
        match self.tensors {
            Some(tensors) if tensors as usize != names.len() => {
                let what = format!(
                    "it and the files beside it hold {} tensors together, but each says that the model has {tensors}: \
                     one of the {} files is of another model",
                    names.len(),
                    self.count
                );
                Err(GgufError::Shard {
                    file: paths.first().map_or_else(String::new, |path| file_name(path)),
                    what,
                })
            }
            _ => Ok((shards, names)),
        }
    }
}

const LIMIT: &str = "a number of files that Tartlet opens (1,024 at most)";
const _: () = assert!(limits::GGUF_SHARDS == 1024);

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {} of {}", u64::from(self.number) + 1, self.count)?;
        self.tensors.map_or(Ok(()), |tensors| write!(f, " of a model of {tensors} tensors"))
    }
}

/// The name of a model without its extension and, if it is one of several files, without its number.
pub(super) fn model_name(path: &Path, files: usize) -> String {
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut numbers = 1..=if files > 1 { files as u32 } else { 0 };
    numbers.find_map(|number| stem(path, number, files as u32)).unwrap_or(name)
}

fn stem(path: &Path, number: u32, count: u32) -> Option<String> {
    file_name(path).strip_suffix(&suffix(number, count)).map(str::to_owned)
}

fn suffix(number: u32, count: u32) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The number under `key`, if it is there.
fn whole(shard: &Shard, key: &str) -> Result<Option<u32>, GgufError> {
    let Some(value) = shard.get(key) else { return Ok(None) };
    match value {
        Value::Integer(n) => u32::try_from(n).ok(),
        _ => None,
    }
    .map(Some)
    .ok_or_else(|| GgufError::kind(key, "a whole number below 2^32", value))
}

#[cfg(test)]
mod tests {
    use super::super::gguf::{Gguf, Quant};
    use super::super::toy::{Toy, Writer};
    use super::*;
    use std::collections::BTreeMap;

    const FIRST: &str = "/m/toy-00001-of-00003.gguf";
    const SECOND: &str = "/m/toy-00002-of-00003.gguf";
    const THIRD: &str = "/m/toy-00003-of-00003.gguf";

    fn refusal(files: &BTreeMap<String, Vec<u8>>, path: &str) -> String {
        Gguf::from_files(files, path).err().expect("refused").to_string()
    }

    /// A file of a set with this in it.
    fn file(number: u32, count: u32, tensors: u32, tensor: &str) -> Vec<u8> {
        Writer::new()
            .u32("split.no", number)
            .u32("split.count", count)
            .u32("split.tensors.count", tensors)
            .tensor(tensor, &[2], Quant::F32, vec![0; 8])
            .bytes()
    }

    /// A set of three files of a tensor each, which say that the model has so many tensors.
    fn set(tensors: u32) -> BTreeMap<String, Vec<u8>> {
        let set = [(FIRST, 0, "a"), (SECOND, 1, "b"), (THIRD, 2, "c")];
        set.map(|(path, number, tensor)| (path.to_owned(), file(number, 3, tensors, tensor))).into()
    }

    #[test]
    fn any_of_the_files_opens_all() {
        let writer = Toy::of(Quant::Q4_K).writer();
        let (one, files) = (Gguf::from_bytes(writer.bytes()).unwrap(), writer.files("/m/toy", 3));
        for path in [FIRST, SECOND, THIRD] {
            let gguf = Gguf::from_files(&files, path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!((gguf.files(), gguf.version()), (3, 3));
            assert_eq!(gguf.file_bytes(), files.values().map(Vec::len).sum::<usize>());
            assert_eq!(gguf.str("general.name").unwrap(), "Toy");
            let names = |gguf: &Gguf| gguf.tensors().map(|tensor| tensor.name.to_owned()).collect::<Vec<_>>();
            assert_eq!(names(&gguf), names(&one));
            for name in names(&one) {
                assert!(gguf.tensor(&name).unwrap().bytes == one.tensor(&name).unwrap().bytes, "{name}");
            }
            assert_eq!(model_name(Path::new(path), gguf.files()), "toy");
            assert_eq!(
                model_name(Path::new(path), 1),
                Path::new(path).file_stem().unwrap().to_str().unwrap()
            );
        }
    }

    #[test]
    fn a_set_with_a_fault_is_refused_by_the_name_of_the_file() {
        let good = set(3);
        assert!(Gguf::from_files(&good, SECOND).is_ok());
        // What lies at a path instead (nothing: the file is not there), and the sentence for it.
        let cases: [(&str, Option<Vec<u8>>, &str); 12] = [
            (
                SECOND,
                None,
                "`toy-00002-of-00003.gguf`: cannot open the model file: entity not found; the model's 3 files",
            ),
            (
                SECOND,
                Some(good[SECOND][..100].to_vec()),
                "`toy-00002-of-00003.gguf`: the GGUF file is damaged at byte",
            ),
            (
                THIRD,
                Some(good[THIRD][..good[THIRD].len() - 30].to_vec()),
                "`toy-00003-of-00003.gguf`: the GGUF file is damaged",
            ),
            (SECOND, Some(b"not found".to_vec()), "`toy-00002-of-00003.gguf`: not a GGUF file"),
            (
                SECOND,
                Some(Writer::new().bytes()),
                "`toy-00002-of-00003.gguf`: it is a model of its own, but should be file 2 of 3",
            ),
            (
                SECOND,
                Some(good[THIRD].clone()),
                "it is file 3 of 3 of a model of 3 tensors, but should be file 2 of 3",
            ),
            (
                SECOND,
                Some(file(2, 3, 3, "d")),
                "`toy-00002-of-00003.gguf`: it is file 3 of 3 of a model of 3 tensors, but should be file 2 of 3",
            ),
            (SECOND, Some(file(1, 4, 3, "b")), "it is file 2 of 4 of a model"),
            (
                SECOND,
                Some(file(1, 3, 4, "b")),
                "of a model of 4 tensors, but should be file 2 of 3 of a model of 3",
            ),
            (SECOND, Some(file(1, 3, 3, "a")), "`toy-00002-of-00003.gguf`: the GGUF file is damaged at byte"),
            (
                FIRST,
                Some(file(0, 2, 3, "a")),
                "is file 1 of 2 of a model, but its name does not end in `-00001-of-00002.gguf`",
            ),
            (
                FIRST,
                Some(file(0, 4_000_000_000, 3, "a")),
                "`split.count` should be a number of files that Tartlet opens",
            ),
        ];
        for (path, instead, want) in cases {
            let mut files = good.clone();
            files.remove(path);
            files.extend(instead.map(|bytes| (path.to_owned(), bytes)));
            let said = refusal(&files, FIRST);
            assert!(said.contains(want), "{path}: {said}, not {want}");
        }
        let said = refusal(&set(9), THIRD);
        assert!(said.contains("hold 3 tensors together, but each says that the model has 9"), "{said}");
        let alone = BTreeMap::from([("/m/toy.gguf".to_owned(), good[THIRD].clone())]);
        assert!(refusal(&alone, "/m/toy.gguf").contains("name does not end in `-00003-of-00003.gguf`"));
    }
}

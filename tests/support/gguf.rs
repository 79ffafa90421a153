//! A GGUF writer, and seeded numbers to fill its tensors with: for the reader's own tests and for those that open
//! files from outside.
//!
//! Owns: bytes, as the format's documentation has them. Never: the reader's code, of which it knows nothing.

/// xorshift64*: seeded numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..below`; 0 if that is empty.
    pub fn below(&mut self, below: usize) -> usize {
        (self.next() >> 33) as usize % below.max(1)
    }
}

/// Numbers of the metadata value types.
mod kind {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Writes GGUF in the order of the calls; a key or a tensor named again replaces the earlier one.
#[derive(Clone)]
pub struct Writer {
    pub version: u32,
    pub metadata: Vec<(String, Vec<u8>)>,                 // key, entry
    pub tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>, // name, dims (row length first), format, bytes
}

/// The items of a metadata array.
pub enum Items<'a> {
    Strings(&'a [String]),
    I32(&'a [i32]),
    F32(&'a [f32]),
}

impl Writer {
    pub fn new() -> Writer {
        Writer { version: 3, metadata: Vec::new(), tensors: Vec::new() }
    }

    fn entry(mut self, key: &str, kind: u32, payload: &[u8]) -> Writer {
        let mut bytes = text(key);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(payload);
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = bytes,
            None => self.metadata.push((key.to_owned(), bytes)),
        }
        self
    }

    pub fn str(self, key: &str, value: &str) -> Writer {
        self.entry(key, kind::STRING, &text(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Writer {
        self.entry(key, kind::U32, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Writer {
        self.entry(key, kind::F32, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Writer {
        self.entry(key, kind::BOOL, &[value.into()])
    }

    pub fn array(self, key: &str, items: Items<'_>) -> Writer {
        let (kind_of_items, len, items): (u32, usize, Vec<u8>) = match items {
            Items::Strings(items) => {
                (kind::STRING, items.len(), items.iter().flat_map(|s| text(s)).collect())
            }
            Items::I32(items) => {
                (kind::I32, items.len(), items.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
            Items::F32(items) => {
                (kind::F32, items.len(), items.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        let mut payload = kind_of_items.to_le_bytes().to_vec();
        payload.extend((len as u64).to_le_bytes());
        payload.extend(items);
        self.entry(key, kind::ARRAY, &payload)
    }

    /// A tensor of any format number, with any bytes; `dims[0]` is the row length.
    pub fn tensor_of(mut self, name: &str, dims: &[usize], format: u32, bytes: Vec<u8>) -> Writer {
        let tensor = (name.to_owned(), dims.to_vec(), format, bytes);
        match self.tensors.iter_mut().find(|(known, ..)| known == name) {
            Some(old) => *old = tensor,
            None => self.tensors.push(tensor),
        }
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        self.metadata.iter().for_each(|(_, entry)| out.extend(entry));
        let mut data: Vec<u8> = Vec::new();
        for (name, dims, format, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

fn text(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

//! `fields` of `wasi:http/types`: header and trailer fields, bounded and counted.
//!
//! Owns: what names and values may be, which names are the protocol's own and no guest's, and how much one set holds.
//! Never: what a field means.

use crate::host::abi::{Borrow, Own};
use crate::host::held::{Charge, Meter};
use crate::host::{Cx, Interface, Trap};
use crate::limits;
use crate::runtime::table::Resource;
use crate::wit_variant;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub fn functions(interface: Interface) -> Interface {
    interface
        .resource::<Fields>()
        .call("[constructor]fields", new)
        .call("[static]fields.from-list", from_list)
        .call("[method]fields.get", get)
        .call("[method]fields.has", has)
        .call("[method]fields.set", set)
        .call("[method]fields.delete", delete)
        .call("[method]fields.append", append)
        .call("[method]fields.entries", entries)
        .call("[method]fields.clone", clone)
}

/// One set of fields. Those of a message cannot be changed.
pub struct Fields {
    map: HeaderMap,
    immutable: bool,
    charge: Charge,
}

impl Resource for Fields {
    const NAME: &'static str = "fields";
}

/// `header-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    InvalidSyntax,
    Forbidden,
    Immutable,
}

wit_variant!(HeaderError { InvalidSyntax, Forbidden, Immutable });

/// What the protocol's own fields say is said by whoever speaks the protocol; so is whom a request is for.
const FORBIDDEN: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What one field counts for: name, value, and what the map keeps of it.
fn weight(name: &HeaderName, value: &HeaderValue) -> usize {
    const ENTRY_BYTES: usize = 96;
    name.as_str().len() + value.len() + ENTRY_BYTES
}

fn weight_of(map: &HeaderMap) -> usize {
    map.iter().map(|(name, value)| weight(name, value)).sum()
}

impl Fields {
    /// Those of a message, without the ones that are the protocol's.
    pub fn of_message(meter: &Meter, mut map: HeaderMap) -> Result<Fields, Trap> {
        for name in &FORBIDDEN {
            map.remove(name);
        }
        Fields::counted(meter, map, true)
    }

    fn counted(meter: &Meter, map: HeaderMap, immutable: bool) -> Result<Fields, Trap> {
        let charge = meter.charge(weight_of(&map))?;
        Ok(Fields { map, immutable, charge })
    }

    /// A copy that belongs to a message.
    pub fn shown(&self, meter: &Meter) -> Result<Fields, Trap> {
        Fields::counted(meter, self.map.clone(), true)
    }

    pub fn map(&self) -> &HeaderMap {
        &self.map
    }

    pub fn into_map(self) -> HeaderMap {
        self.map
    }

    /// With what counts them, for whoever keeps them on.
    pub fn into_parts(self) -> (HeaderMap, Charge) {
        (self.map, self.charge)
    }

    /// Adds values under a name, after taking the old ones away if `replace`.
    fn put(&mut self, name: HeaderName, values: Vec<HeaderValue>, replace: bool) -> Result<(), Trap> {
        if replace {
            self.map.remove(&name);
        }
        for value in values {
            self.map.append(&name, value);
        }
        let bytes: usize = self.map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if self.map.len() > limits::FIELDS || bytes > limits::FIELDS_BYTES {
            return Err(Trap::error(format!(
                "{} fields of {bytes} bytes; one set has at most {} fields and {} bytes",
                self.map.len(),
                limits::FIELDS,
                limits::FIELDS_BYTES
            )));
        }
        self.charge.set(weight_of(&self.map))
    }
}

type Answer<T> = Result<T, HeaderError>;

/// A name that a guest may use.
fn allowed(name: &str) -> Answer<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderError::InvalidSyntax)?;
    if FORBIDDEN.contains(&name) { Err(HeaderError::Forbidden) } else { Ok(name) }
}

fn valid(value: Vec<u8>) -> Answer<HeaderValue> {
    HeaderValue::try_from(value).map_err(|_| HeaderError::InvalidSyntax)
}

fn new(cx: &mut Cx) -> Result<Own<Fields>, Trap> {
    Fields::counted(&cx.held, HeaderMap::new(), false).map(Own)
}

fn from_list(cx: &mut Cx, list: Vec<(String, Vec<u8>)>) -> Result<Answer<Own<Fields>>, Trap> {
    if list.len() > limits::FIELDS {
        return Err(Trap::error(format!("{} fields; one set has at most {}", list.len(), limits::FIELDS)));
    }
    let mut fields = Fields::counted(&cx.held, HeaderMap::new(), false)?;
    for (name, value) in list {
        match allowed(&name).and_then(|name| Ok((name, valid(value)?))) {
            Ok((name, value)) => fields.put(name, vec![value], false)?,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(Own(fields)))
}

fn get(cx: &mut Cx, fields: Borrow<Fields>, name: String) -> Result<Vec<Vec<u8>>, Trap> {
    let values = cx.table.get(&fields)?.map.get_all(name.to_ascii_lowercase());
    Ok(values.iter().map(|value| value.as_bytes().to_vec()).collect())
}

fn has(cx: &mut Cx, fields: Borrow<Fields>, name: String) -> Result<bool, Trap> {
    Ok(cx.table.get(&fields)?.map.contains_key(name.to_ascii_lowercase()))
}

/// The fields, if they may be changed.
fn changeable<'c>(cx: &'c mut Cx, fields: &Borrow<Fields>) -> Result<Answer<&'c mut Fields>, Trap> {
    let fields = cx.table.get_mut(fields)?;
    Ok(if fields.immutable { Err(HeaderError::Immutable) } else { Ok(fields) })
}

fn change(
    cx: &mut Cx,
    fields: Borrow<Fields>,
    name: &str,
    values: Vec<Vec<u8>>,
    replace: bool,
) -> Result<Answer<()>, Trap> {
    let fields = match changeable(cx, &fields)? {
        Ok(fields) => fields,
        Err(error) => return Ok(Err(error)),
    };
    let name = allowed(name);
    let values = values.into_iter().map(valid).collect::<Answer<Vec<_>>>();
    match name.and_then(|name| Ok((name, values?))) {
        Ok((name, values)) => fields.put(name, values, replace).map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

fn set(cx: &mut Cx, fields: Borrow<Fields>, name: String, values: Vec<Vec<u8>>) -> Result<Answer<()>, Trap> {
    change(cx, fields, &name, values, true)
}

fn delete(cx: &mut Cx, fields: Borrow<Fields>, name: String) -> Result<Answer<()>, Trap> {
    change(cx, fields, &name, vec![], true)
}

fn append(cx: &mut Cx, fields: Borrow<Fields>, name: String, value: Vec<u8>) -> Result<Answer<()>, Trap> {
    change(cx, fields, &name, vec![value], false)
}

fn entries(cx: &mut Cx, fields: Borrow<Fields>) -> Result<Vec<(String, Vec<u8>)>, Trap> {
    let entries = cx.table.get(&fields)?.map.iter();
    Ok(entries.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect())
}

/// The copy can be changed.
fn clone(cx: &mut Cx, fields: Borrow<Fields>) -> Result<Own<Fields>, Trap> {
    let map = cx.table.get(&fields)?.map.clone();
    Fields::counted(&cx.held, map, false).map(Own)
}

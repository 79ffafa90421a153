//! The canonical ABI's view of a type: what crosses between guest and host, as plain data.
//!
//! Owns: [`Shape`], its flattening to core values, its size and alignment in guest memory. Never: a value, guest
//! memory, or names of record fields and enum cases (the ABI does not see them either).
//!
//! Three things are compared as shapes: our typed host functions, what a component declares to import, and (in a
//! test) the published WIT.

use std::fmt;
use wasmi::{FuncType, ValType};

/// Core values beyond which the parameters travel through memory. No function of ours has that many.
pub const FLAT_PARAMETERS: usize = 16;
/// Core values beyond which a result travels through a pointer that the caller passes last.
pub const FLAT_RESULTS: usize = 1;

/// A component-level value type. Records are tuples: the ABI lays them out alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Bool,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    Char,
    String,
    List(Box<Shape>),
    Tuple(Vec<Shape>),
    Option(Box<Shape>),
    /// A missing side carries nothing.
    Result(Option<Box<Shape>>, Option<Box<Shape>>),
    /// Number of cases.
    Enum(usize),
    /// Number of flags, at most 32 here.
    Flags(usize),
    Variant(Vec<Option<Shape>>),
    /// The resource's name in its interface.
    Own(String),
    Borrow(String),
}

impl Shape {
    /// The core values that carry this type outside memory, in order.
    pub fn flat(&self) -> Vec<ValType> {
        match self {
            Shape::Bool
            | Shape::U8
            | Shape::S8
            | Shape::U16
            | Shape::S16
            | Shape::U32
            | Shape::S32
            | Shape::Char
            | Shape::Enum(_)
            | Shape::Flags(_)
            | Shape::Own(_)
            | Shape::Borrow(_) => vec![ValType::I32],
            Shape::U64 | Shape::S64 => vec![ValType::I64],
            Shape::F32 => vec![ValType::F32],
            Shape::F64 => vec![ValType::F64],
            Shape::String | Shape::List(_) => vec![ValType::I32, ValType::I32],
            Shape::Tuple(fields) => fields.iter().flat_map(Shape::flat).collect(),
            Shape::Option(some) => Shape::flat_cases([Some(&**some)].into_iter()),
            Shape::Result(ok, err) => Shape::flat_cases([ok.as_deref(), err.as_deref()].into_iter()),
            Shape::Variant(cases) => Shape::flat_cases(cases.iter().map(Option::as_ref)),
        }
    }

    /// The discriminant, then for each position a core type that can hold any case's value there.
    fn flat_cases<'a>(cases: impl Iterator<Item = Option<&'a Shape>>) -> Vec<ValType> {
        let mut joined = vec![ValType::I32];
        for case in cases.flatten() {
            for (i, ty) in case.flat().into_iter().enumerate() {
                match joined.get_mut(i + 1) {
                    None => joined.push(ty),
                    Some(slot) if *slot == ty => {}
                    Some(slot) => {
                        let both = [*slot, ty];
                        let narrow = both.iter().all(|t| matches!(t, ValType::I32 | ValType::F32));
                        *slot = if narrow { ValType::I32 } else { ValType::I64 };
                    }
                }
            }
        }
        joined
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<'a>(
            f: &mut fmt::Formatter<'_>,
            name: &str,
            of: impl Iterator<Item = Option<&'a Shape>>,
        ) -> fmt::Result {
            write!(f, "{name}<")?;
            for (i, shape) in of.enumerate() {
                f.write_str(if i > 0 { ", " } else { "" })?;
                match shape {
                    Some(shape) => shape.fmt(f)?,
                    None => f.write_str("_")?,
                }
            }
            f.write_str(">")
        }
        match self {
            Shape::List(of) => list(f, "list", [Some(&**of)].into_iter()),
            Shape::Tuple(fields) => list(f, "tuple", fields.iter().map(Some)),
            Shape::Option(some) => list(f, "option", [Some(&**some)].into_iter()),
            Shape::Result(ok, err) => list(f, "result", [ok.as_deref(), err.as_deref()].into_iter()),
            Shape::Variant(cases) => list(f, "variant", cases.iter().map(Option::as_ref)),
            Shape::Enum(cases) => write!(f, "enum of {cases}"),
            Shape::Flags(flags) => write!(f, "{flags} flags"),
            Shape::Own(name) => write!(f, "own<{name}>"),
            Shape::Borrow(name) => write!(f, "borrow<{name}>"),
            scalar => f.write_str(&format!("{scalar:?}").to_lowercase()),
        }
    }
}

/// A function's type: what a guest passes and what it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub parameters: Vec<Shape>,
    pub result: Option<Shape>,
}

impl Signature {
    /// Whether the result travels through a pointer that the caller passes last.
    pub fn returns_by_pointer(&self) -> bool {
        self.result.as_ref().is_some_and(|result| result.flat().len() > FLAT_RESULTS)
    }

    /// The core function that `canon lower` makes of it.
    pub fn lowered(&self) -> FuncType {
        let mut parameters: Vec<ValType> = self.parameters.iter().flat_map(Shape::flat).collect();
        if parameters.len() > FLAT_PARAMETERS {
            parameters = vec![ValType::I32];
        }
        let results = match &self.result {
            Some(_) if self.returns_by_pointer() => {
                parameters.push(ValType::I32);
                vec![]
            }
            Some(result) => result.flat(),
            None => vec![],
        };
        FuncType::new(parameters, results)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (i, parameter) in self.parameters.iter().enumerate() {
            write!(f, "{}{parameter}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str(")")?;
        self.result.iter().try_for_each(|result| write!(f, " -> {result}"))
    }
}

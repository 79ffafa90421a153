//! PTX's fundamental types and which register may hold which. Executes nothing.

/// A type as an instruction or a register declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    F16x2,
    Bf16x2,
    B64,
    U64,
    S64,
    F64,
    Pred,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Bits,
    Integer,
    Float,
    Pred,
}

impl Type {
    pub fn named(name: &str) -> Option<Type> {
        Some(match name {
            "b8" => Type::B8,
            "u8" => Type::U8,
            "s8" => Type::S8,
            "b16" => Type::B16,
            "u16" => Type::U16,
            "s16" => Type::S16,
            "f16" => Type::F16,
            "bf16" => Type::Bf16,
            "b32" => Type::B32,
            "u32" => Type::U32,
            "s32" => Type::S32,
            "f32" => Type::F32,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::Bf16x2,
            "b64" => Type::B64,
            "u64" => Type::U64,
            "s64" => Type::S64,
            "f64" => Type::F64,
            "pred" => Type::Pred,
            _ => return None,
        })
    }

    /// Bytes; a predicate has none.
    pub fn size(self) -> u32 {
        match self {
            Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::Pred => 0,
        }
    }

    pub fn bits(self) -> u32 {
        self.size() * 8
    }

    /// All ones over the width.
    pub fn mask(self) -> u64 {
        if self.size() == 8 { u64::MAX } else { (1 << self.bits()) - 1 }
    }

    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub fn float(self) -> bool {
        self.class() == Class::Float
    }

    pub fn integer(self) -> bool {
        self.class() == Class::Integer
    }

    fn class(self) -> Class {
        match self {
            // Registers have no type bf16: it lives in .b16, and its pairs in .b32.
            Type::B8 | Type::B16 | Type::B32 | Type::B64 => Class::Bits,
            Type::F16 | Type::F32 | Type::F64 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => Class::Float,
            Type::Pred => Class::Pred,
            _ => Class::Integer,
        }
    }

    /// May an operand of this type be a register of that type? The ISA's rule: bits fit all of their size,
    /// signed and unsigned fit each other, floats only themselves.
    pub fn fits(self, register: Type) -> bool {
        self.size() == register.size() && self.agrees(register)
    }

    /// The rule of ld, st and cvt: the register may be wider.
    pub fn fits_wider(self, register: Type) -> bool {
        if self.float() && register.float() {
            return self == register;
        }
        self.size() <= register.size() && self.agrees(register)
    }

    fn agrees(self, register: Type) -> bool {
        let (a, b) = (self.class(), register.class());
        match (a, b) {
            (Class::Pred, _) | (_, Class::Pred) => a == b,
            (Class::Bits, _) | (_, Class::Bits) => true,
            (Class::Float, Class::Float) => self == register,
            _ => a == b,
        }
    }

    /// Sign- or zero-extends the low bits of this type to 64.
    pub fn extend(self, value: u64) -> u64 {
        match self {
            Type::S8 => value as u8 as i8 as i64 as u64,
            Type::S16 => value as u16 as i16 as i64 as u64,
            Type::S32 => value as u32 as i32 as i64 as u64,
            _ => value & self.mask(),
        }
    }
}

/// A state space of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Const,
    Param,
    Local,
}

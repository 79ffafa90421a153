//! What a stack holds: something begun, or something that is still to come.
//!
//! Owns: the bytes within a string and within a number, and how many more each needs at least. Never: the schema.

/// More than any text has.
pub const NEVER: u32 = u32::MAX / 4;

/// Digits of a number, and of its fraction: what a double holds exactly.
pub const DIGITS: u8 = 15;

/// The largest whole number with that many digits.
pub const WIDEST: i64 = 999_999_999_999_999;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Frame {
    /// A value of this node.
    Value(usize),
    /// This text from this byte on.
    Text(usize, usize),
    /// One of these texts, which are sorted and alike up to this byte, from it on.
    Texts(usize, usize, usize),
    /// The properties of this object from this one on; whether one was written.
    Members(usize, usize, bool),
    /// The items of this array behind this many.
    Items(usize, u32),
    /// The members of this object of any keys, behind this many.
    Keys(usize, u32),
    /// The rest of a string up to its quote: characters that it needs, and that it may have.
    Chars {
        need: u32,
        room: u32,
        within: Char,
    },
    Whole(Whole),
    Decimal(Decimal),
}

/// Where in a character of a string.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Char {
    Between,
    /// So many bytes of UTF-8 are to come, the next one in this range.
    Utf8 {
        left: u8,
        low: u8,
        high: u8,
    },
    /// Behind a backslash.
    Escape,
    /// Behind `\u` and so many digits. No halves of surrogate pairs: the second digit behind a `d` stays below 8.
    Hex {
        digits: u8,
        d: bool,
    },
}

impl Char {
    /// Bytes that end the character.
    pub fn least(self) -> u32 {
        match self {
            Char::Between => 0,
            Char::Utf8 { left, .. } => left.into(),
            Char::Escape => 1,
            Char::Hex { digits, .. } => 4 - u32::from(digits),
        }
    }

    /// Behind one more byte, and whether it began a character; none if it may not come. Quotes are not ours.
    pub fn next(self, byte: u8) -> Option<(Char, bool)> {
        let utf8 = |left, low, high| Some((Char::Utf8 { left, low, high }, true));
        match self {
            Char::Between => match byte {
                b'\\' => Some((Char::Escape, true)),
                0x20..0x80 => Some((Char::Between, true)),
                0xc2..=0xdf => utf8(1, 0x80, 0xbf),
                0xe0 => utf8(2, 0xa0, 0xbf),
                0xed => utf8(2, 0x80, 0x9f),
                0xe1..=0xef => utf8(2, 0x80, 0xbf),
                0xf0 => utf8(3, 0x90, 0xbf),
                0xf1..=0xf3 => utf8(3, 0x80, 0xbf),
                0xf4 => utf8(3, 0x80, 0x8f),
                _ => None,
            },
            Char::Utf8 { left, low, high } if (low..=high).contains(&byte) => {
                let more = Char::Utf8 { left: left - 1, low: 0x80, high: 0xbf };
                Some((if left == 1 { Char::Between } else { more }, false))
            }
            Char::Utf8 { .. } => None,
            Char::Escape => match byte {
                b'u' => Some((Char::Hex { digits: 0, d: false }, false)),
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some((Char::Between, false)),
                _ => None,
            },
            Char::Hex { d: true, .. } if !byte.is_ascii_digit() || byte > b'7' => None,
            Char::Hex { digits, .. } if byte.is_ascii_hexdigit() => {
                let d = digits == 0 && byte.eq_ignore_ascii_case(&b'd');
                Some((if digits == 3 { Char::Between } else { Char::Hex { digits: digits + 1, d } }, false))
            }
            Char::Hex { .. } => None,
        }
    }
}

/// A whole number from `min` to `max`, both within `WIDEST`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Whole {
    pub min: i64,
    pub max: i64,
    pub negative: bool,
    /// The digits so far; none before the first.
    pub value: Option<i64>,
}

impl Whole {
    /// What its digits may say: a zero has no sign.
    fn magnitudes(&self) -> (i64, i64) {
        if self.negative { ((-self.max).max(1), -self.min) } else { (self.min.max(0), self.max) }
    }

    /// Bytes that make it a number in its range.
    pub fn least(&self) -> u32 {
        let (low, high) = self.magnitudes();
        let Some(value) = self.value else {
            let digits = if low > high { NEVER } else { low.checked_ilog10().unwrap_or(0) + 1 };
            if self.negative || self.min >= 0 {
                return digits;
            }
            let minus = Whole { negative: true, ..*self };
            return digits.min(minus.least().saturating_add(1)).min(NEVER);
        };
        // With `more` digits behind it, it may be anything from `value` * 10^more on, up to as many nines.
        let reaches = |&more: &u32| {
            let unit = 10i128.pow(more);
            let from = i128::from(value) * unit;
            (more == 0 || value > 0) && from <= high.into() && from + unit > low.into()
        };
        (0..=u32::from(DIGITS)).find(reaches).unwrap_or(NEVER)
    }

    pub fn next(self, byte: u8) -> Option<Whole> {
        let next = match (byte, self.value) {
            (b'-', None) if !self.negative => Whole { negative: true, ..self },
            (b'0'..=b'9', None) => Whole { value: Some(i64::from(byte - b'0')), ..self },
            (b'0'..=b'9', Some(1..=WIDEST)) => {
                let value = self.value.map(|value| value.saturating_mul(10) + i64::from(byte - b'0'));
                Whole { value, ..self }
            }
            _ => return None,
        };
        (next.least() < NEVER).then_some(next)
    }
}

/// A number with a point, if it has one, and without an exponent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decimal {
    Start,
    Minus,
    Zero,
    Digits(u8),
    Point,
    Fraction(u8),
}

impl Decimal {
    pub fn least(self) -> u32 {
        matches!(self, Decimal::Start | Decimal::Minus | Decimal::Point).into()
    }

    pub fn next(self, byte: u8) -> Option<Decimal> {
        match (self, byte) {
            (Decimal::Start, b'-') => Some(Decimal::Minus),
            (Decimal::Start | Decimal::Minus, b'0') => Some(Decimal::Zero),
            (Decimal::Start | Decimal::Minus, b'1'..=b'9') => Some(Decimal::Digits(1)),
            (Decimal::Digits(digits @ ..DIGITS), b'0'..=b'9') => Some(Decimal::Digits(digits + 1)),
            (Decimal::Zero | Decimal::Digits(_), b'.') => Some(Decimal::Point),
            (Decimal::Point, b'0'..=b'9') => Some(Decimal::Fraction(1)),
            (Decimal::Fraction(digits @ ..DIGITS), b'0'..=b'9') => Some(Decimal::Fraction(digits + 1)),
            _ => None,
        }
    }
}

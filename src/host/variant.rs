//! How a WIT `variant` crosses: a discriminant, then the payload of its case, padded to that of the largest.
//!
//! Owns: the macro that makes an enum one. Never: an access to guest memory of its own.

/// Makes an enum whose cases have one payload or none a WIT `variant`: its cases in WIT order, at most 256.
#[macro_export]
macro_rules! wit_variant {
    ($type:ident { $($case:ident $(($payload:ty))?),* $(,)? }) => {
        impl $crate::host::abi::Value for $type {
            const ALIGN: usize = {
                let mut _align = 1;
                $($(_align = $crate::host::values::max(_align, <$payload as $crate::host::abi::Value>::ALIGN);)?)*
                _align
            };
            const SIZE: usize = {
                let mut _size = 0;
                $($(_size = $crate::host::values::max(_size, <$payload as $crate::host::abi::Value>::SIZE);)?)*
                (Self::ALIGN + _size).next_multiple_of(Self::ALIGN)
            };
            const FLAT: usize = {
                let mut _flat = 0;
                $($(_flat = $crate::host::values::max(_flat, <$payload as $crate::host::abi::Value>::FLAT);)?)*
                1 + _flat
            };
            const NESTED: bool = false $($(|| <$payload as $crate::host::abi::Value>::NESTED)?)*;
            fn shape() -> $crate::host::shape::Shape {
                $crate::host::shape::Shape::Variant(vec![
                    $(None$(.or_else(|| Some(<$payload as $crate::host::abi::Value>::shape())))?),*
                ])
            }
        }

        #[allow(unused_variables)] // where no case has a payload
        impl $crate::host::abi::Lift for $type {
            fn lift(
                from: &mut $crate::host::abi::Source<'_>,
                flat: &mut $crate::host::abi::Flat<'_>,
            ) -> Result<Self, $crate::host::Trap> {
                let case = flat.u32()?;
                let mut at = 0;
                $(
                    if case == at {
                        let used = 0 $(+ <$payload as $crate::host::abi::Value>::FLAT)?;
                        let value = $type::$case$((<$payload as $crate::host::abi::Lift>::lift(from, flat)?))?;
                        flat.skip(<Self as $crate::host::abi::Value>::FLAT - 1 - used);
                        return Ok(value);
                    }
                    at += 1;
                )*
                let _: u32 = at;
                $crate::host::values::bad_case(case as usize, stringify!($type))
            }
            fn load(
                from: &mut $crate::host::abi::Source<'_>,
                at: usize,
            ) -> Result<Self, $crate::host::Trap> {
                let case = <u8 as $crate::host::abi::Lift>::load(from, at)?;
                let _place = at + <Self as $crate::host::abi::Value>::ALIGN;
                let mut index = 0;
                $(
                    if case == index {
                        return Ok($type::$case$((<$payload as $crate::host::abi::Lift>::load(from, _place)?))?);
                    }
                    index += 1;
                )*
                let _ = index;
                $crate::host::values::bad_case(case as usize, stringify!($type))
            }
        }

        impl $crate::host::abi::Lower for $type {
            fn lower(self, _: &mut $crate::host::abi::Target<'_>) -> Result<wasmi::Val, $crate::host::Trap> {
                Err($crate::host::Trap::error("a variant does not fit one number"))
            }
            fn store(
                self,
                into: &mut $crate::host::abi::Target<'_>,
                at: usize,
            ) -> Result<(), $crate::host::Trap> {
                let cases = [$(matches!(&self, $type::$case { .. })),*];
                let case = cases.iter().position(|is| *is).unwrap_or_default() as u8;
                <u8 as $crate::host::abi::Lower>::store(case, into, at)?;
                let _place = at + <Self as $crate::host::abi::Value>::ALIGN;
                $($(
                    if let $type::$case(value) = self {
                        return <$payload as $crate::host::abi::Lower>::store(value, into, _place);
                    }
                )?)*
                Ok(())
            }
        }
    };
}

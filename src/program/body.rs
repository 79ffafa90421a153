//! Whether the bodies of a program's functions are sound, and what it will take to translate them.
//!
//! Owns: their validation, one body at a time, and the counts of what few bytes can say much of. Never: what is around
//! them, which `component.rs` reads, nor their translation. The interpreter validates them too, as it translates them;
//! by then it is too late to refuse one that 12 KB make 67 MB of.

use super::rejected::Rejected;
use wasmparser::{
    BinaryReaderError, FuncToValidate, FuncValidatorAllocations, FunctionBody, Operator, ValidatorResources,
    WasmFeatures,
};

/// What a body may use: the interpreter's features, to which a test holds it.
fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::GC_TYPES // for reference types; no body makes a GC object with it
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::FLOATS
}

/// Values that an instruction takes and gives, together, before it counts: a branch if so, with one value, has 3.
const FEW: usize = 4;

/// Validates bodies; keeps what it has allocated for the next one.
#[derive(Default)]
pub struct Bodies {
    allocations: FuncValidatorAllocations,
    /// Parameters and locals of all bodies so far, ...
    pub locals: usize,
    /// ... and of the one that has the most.
    pub locals_of_one: usize,
    /// Values beyond a few that their instructions take and give; those of a branch by table once for each way.
    pub moved: usize,
}

impl Bodies {
    pub fn check(
        &mut self,
        mut function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
    ) -> Result<(), Rejected> {
        function.features = features();
        let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
        let refused = |error: BinaryReaderError| Rejected::Untranslatable(error.to_string());
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader).map_err(refused)?;
        let locals = validator.len_locals() as usize;
        self.locals += locals;
        self.locals_of_one = self.locals_of_one.max(locals);
        while !reader.eof() {
            let offset = reader.original_position();
            let operator = reader.read_operator().map_err(refused)?;
            // Before the operator changes what it is counted by.
            let (takes, gives) = operator.operator_arity(&validator.visitor(offset)).unwrap_or_default();
            validator.op(offset, &operator).map_err(refused)?;
            let values = takes as usize + gives as usize;
            self.moved += match operator {
                Operator::BrTable { targets } => values.saturating_sub(1) * targets.len() as usize,
                _ => values.saturating_sub(FEW),
            };
        }
        validator.finish(reader.original_position()).map_err(refused)?;
        self.allocations = validator.into_allocations();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::translate::config;
    use wasmi::{Engine, Module};
    use wasmparser::{Parser, ValidPayload, Validator};

    /// Of a body that is taken here and that the interpreter does not take, the refusal would be in its words.
    #[test]
    fn what_is_taken_is_what_the_interpreter_takes() {
        let eager = Engine::new(&config());
        let bodies = [
            ("numbers", "(drop (f64.add (f64.const 1) (f64.const 2)))", true),
            ("a type error", "(drop (i32.add (i32.const 1) (i64.const 2)))", false),
            ("a missing value", "(drop)", false),
            ("sign extension", "(drop (i32.extend8_s (i32.const 1)))", true),
            ("saturation", "(drop (i32.trunc_sat_f32_s (f32.const 1)))", true),
            ("bulk memory", "(memory.copy (i32.const 0) (i32.const 1) (i32.const 2))", true),
            ("tail calls", "(return_call 0)", true),
            ("references", "(drop (table.get 0 (i32.const 0)))", true),
            ("several values", "(block (result i32 i32) (i32.const 1) (i32.const 2)) (drop) (drop)", true),
            ("vectors", "(drop (i8x16.splat (i32.const 1)))", false),
            (
                "loose vectors",
                "(drop (f32x4.relaxed_min (v128.const i64x2 0 0) (v128.const i64x2 0 0)))",
                false,
            ),
            ("atomics", "(drop (i32.atomic.load (i32.const 0)))", false),
            ("exceptions", "(throw 0)", false),
            ("collected objects", "(drop (ref.i31 (i32.const 1)))", false),
            ("typed calls", "(call_ref 0 (ref.func 0))", false),
            ("wide numbers", "(i64.mul_wide_s (i64.const 1) (i64.const 1)) (drop) (drop)", false),
        ];
        for (name, body, sound) in bodies {
            let tag = if name == "exceptions" { "(tag)" } else { "" };
            let text = format!(
                r#"(module (type (func)) (memory 1) (table 1 funcref) {tag} (elem declare func 0) (func {body}))"#
            );
            let wasm = wat::parse_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut validator = Validator::new_with_features(WasmFeatures::all());
            let mut bodies = Bodies::default();
            let mut taken = true;
            for payload in Parser::new(0).parse_all(&wasm) {
                if let ValidPayload::Func(function, body) = validator.payload(&payload.unwrap()).unwrap() {
                    taken &= bodies.check(function, &body).is_ok();
                }
            }
            assert_eq!((taken, Module::new(&eager, &wasm).is_ok()), (sound, sound), "{name}");
        }
    }
}

//! PTX to kernels: compiled by the driver, with what its compiler says.
//!
//! Owns: modules, kernels, and the parameters that each kernel declares. Never: a launch.
//!
//! A module has one kernel of the module's own name. Its parameters are read from the PTX, so that a launch with one
//! too many, or a u32 for a pointer, is an error and no read past the arguments.

use super::{Buffer, Device, Error, driver};
use cust::sys;
use std::ffi::{CString, c_void};

/// Room for what the driver's compiler says of one module: some dozen lines.
const LOG_BYTES: usize = 16 << 10;

/// A loaded module; its kernel keeps it.
struct Module {
    device: Device,
    raw: sys::CUmodule,
}

/// One kernel, ready to be launched.
pub struct Kernel {
    /// Where `raw` lies.
    _module: Module,
    raw: sys::CUfunction,
    name: String,
    parameters: Vec<Parameter>,
    properties: KernelProperties,
    /// It waits itself for what it reads of the launch before: that may still be at work when this one begins.
    dependent: bool,
}

/// What the device's own compiler made of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelProperties {
    /// Per thread.
    pub registers: u32,
    /// Bytes of local memory per thread: above 0, registers were spilled.
    pub local_bytes: u32,
    /// Bytes of static shared memory per CTA.
    pub shared_bytes: u32,
}

/// The type of a parameter, by its size and where its register lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Bits64,
    Bits32,
    F32,
}

/// One argument of a launch.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// A pointer to the start of a buffer.
    Buffer(&'a Buffer),
    /// A pointer somewhere into a buffer, or null.
    Address(u64),
    U32(u32),
    F32(f32),
}

/// A count as an argument: all that kernels count is below 2^32.
pub(super) fn number(count: usize) -> Argument<'static> {
    Argument::U32(count as u32)
}

impl Argument<'_> {
    /// What a parameter reads, and its bits, the low ones first.
    fn bits(self) -> (Parameter, u64) {
        match self {
            Argument::Buffer(buffer) => (Parameter::Bits64, buffer.address()),
            Argument::Address(address) => (Parameter::Bits64, address),
            Argument::U32(number) => (Parameter::Bits32, number.into()),
            Argument::F32(number) => (Parameter::F32, number.to_bits().into()),
        }
    }
}

impl Device {
    /// Compiles the PTX `text` and finds its kernel `name`.
    pub fn kernel(&self, name: &str, text: &str) -> Result<Kernel, Error> {
        let wrong = |why: &str| Error::Launch { kernel: name.to_owned(), why: why.to_owned() };
        let parameters = parameters(name, text).map_err(|why| wrong(&why))?;
        let module = Module::load(self, name, text)?;
        // A driver that loads lazily finds here what is wrong with it.
        let judge = |call, status| {
            self.judge(call, status).map_err(|error| match error {
                Error::Refused { call, code } => {
                    Error::Kernel { module: name.to_owned(), code, log: format!("{call} refuses it") }
                }
                error => error,
            })
        };
        let symbol = CString::new(name).map_err(|_| wrong("its name has a NUL"))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with its NUL, the place for the handle is ours.
        let status = unsafe { driver::cuModuleGetFunction(&mut raw, module.raw, symbol.as_ptr()) };
        judge("cuModuleGetFunction", status)?;
        let number = |attribute| {
            let mut value = 0;
            // SAFETY: the function is the module's, the place for an i32 is ours.
            let status = unsafe { driver::cuFuncGetAttribute(&mut value, attribute, raw) };
            judge("cuFuncGetAttribute", status).map(|()| u32::try_from(value).unwrap_or(0))
        };
        use sys::CUfunction_attribute_enum as Attribute;
        let properties = KernelProperties {
            registers: number(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: number(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: number(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        };
        let dependent = text.contains("griddepcontrol.wait");
        Ok(Kernel { _module: module, raw, name: name.to_owned(), parameters, properties, dependent })
    }
}

impl Module {
    fn load(device: &Device, name: &str, text: &str) -> Result<Module, Error> {
        let refused = |code, log| Error::Kernel { module: name.to_owned(), code, log };
        let text = CString::new(text).map_err(|_| refused(0, "its text has a NUL".to_owned()))?;
        let (mut said, mut warned) = (vec![0u8; LOG_BYTES], vec![0u8; LOG_BYTES]);
        use sys::CUjit_option_enum as Jit;
        let mut options = [
            Jit::CU_JIT_ERROR_LOG_BUFFER,
            Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            Jit::CU_JIT_INFO_LOG_BUFFER,
            Jit::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        ];
        // Sizes are handed over in the place of a pointer, and come back there.
        let mut values: [*mut c_void; 4] = [
            said.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(LOG_BYTES),
            warned.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(LOG_BYTES),
        ];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text ends with its NUL; each of the four options has its value; the logs are as long as said.
        let status = unsafe {
            driver::cuModuleLoadDataEx(
                &mut raw,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match device.judge("cuModuleLoadDataEx", status) {
            Ok(()) => {
                let warnings = lines(&warned);
                if !warnings.is_empty() {
                    tracing::debug!("the driver's compiler on {name}: {warnings}");
                }
                Ok(Module { device: device.clone(), raw })
            }
            // Only a plain refusal is about the PTX; anything else is what it always is.
            Err(Error::Refused { code, .. }) => {
                let logs = [lines(&said), lines(&warned)];
                Err(refused(
                    code,
                    logs.into_iter().filter(|log| !log.is_empty()).collect::<Vec<_>>().join("; "),
                ))
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: the last kernel of it is gone. A status has nobody to go to.
            let _ = unsafe { driver::cuModuleUnload(self.raw) };
        }
    }
}

impl Kernel {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn properties(&self) -> KernelProperties {
        self.properties
    }

    pub(super) fn is_dependent(&self) -> bool {
        self.dependent
    }

    pub(super) fn raw(&self) -> sys::CUfunction {
        self.raw
    }

    /// The bits of arguments that are as many and of such types as the kernel declares.
    pub(super) fn arguments(&self, arguments: &[Argument<'_>]) -> Result<Vec<u64>, Error> {
        let wrong = |why: String| Error::Launch { kernel: self.name.clone(), why };
        if arguments.len() != self.parameters.len() {
            return Err(wrong(format!(
                "it has {} parameters, but {} arguments are given",
                self.parameters.len(),
                arguments.len()
            )));
        }
        let mut bits = Vec::with_capacity(arguments.len());
        for (at, (argument, parameter)) in arguments.iter().zip(&self.parameters).enumerate() {
            let (given, value) = argument.bits();
            if given != *parameter {
                return Err(wrong(format!("its parameter {at} is {parameter:?}, but {given:?} is given")));
            }
            bits.push(value);
        }
        Ok(bits)
    }
}

/// The types of the parameters of `.entry name(...)` in PTX.
fn parameters(name: &str, text: &str) -> Result<Vec<Parameter>, String> {
    // Without comments, and without the marks that say where a line comes from.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let plain: String = lines.flat_map(|line| [line.split("//").next().unwrap_or(""), "\n"]).collect();
    let entry = plain.match_indices(".entry").map(|(at, word)| plain[at + word.len()..].trim_start());
    let list = entry
        .filter_map(|rest| rest.strip_prefix(name))
        .find_map(|rest| rest.trim_start().strip_prefix('(')?.split(')').next())
        .ok_or("its PTX has no entry of its name")?;
    let one = |declared: &str| {
        let mut words = declared.split_whitespace();
        match (words.next(), words.next()) {
            (Some(".param"), Some(".u64" | ".s64" | ".b64")) => Ok(Parameter::Bits64),
            (Some(".param"), Some(".u32" | ".s32" | ".b32")) => Ok(Parameter::Bits32),
            (Some(".param"), Some(".f32")) => Ok(Parameter::F32),
            _ => Err(format!("`{}` is no parameter that a launch can give", declared.trim())),
        }
    };
    list.split(',').filter(|declared| !declared.trim().is_empty()).map(one).collect()
}

/// The lines of a log in one: a sentence has no line breaks.
fn lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_ptx() {
        let text = "# 1 \"x.ptx\"\n.visible .entry other(.param .u64 a)\n{}\n.visible .entry f (\n    .param .u64 to, // a, comment)\n# 7 \"a, b.inc\"\n    .param .u32 count,\n    .param .f32 scale\n)\n{ }";
        assert_eq!(parameters("f", text), Ok(vec![Parameter::Bits64, Parameter::Bits32, Parameter::F32]));
        assert_eq!(parameters("other", text), Ok(vec![Parameter::Bits64]));
        assert!(parameters("g", text).is_err());
        assert_eq!(parameters("g", ".entry g()"), Ok(vec![]));
        assert!(
            parameters("g", ".entry g(.param .align 8 .b8 all[16])").is_err_and(|why| why.contains(".b8"))
        );
    }

    #[test]
    fn a_log_becomes_one_line() {
        assert_eq!(lines(b"ptxas a\n  b \n\n\0rest"), "ptxas a; b");
        assert_eq!(lines(&[0; 4]), "");
    }
}

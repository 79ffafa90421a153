//! Our tables against the published WIT, value type by value type.
//!
//! Core signatures alone cannot tell a string from a list of bytes, or one handle from another, so shapes are
//! compared too. The WIT is read from the very crate that guests are built with.

use super::shape::{Shape, Signature};
use super::{Interface, interfaces, without_patch};
use std::path::PathBuf;
use std::process::Command;
use wasmi::{FuncType, ValType};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Function, Handle, InterfaceId, Resolve, Stability, Type, TypeDefKind, TypeId};

/// The folder `wit` of the SDK that our guest workspace is locked to.
fn published_wit() -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let workspace = PathBuf::from(root).join("inferlets/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform=wasm32-wasip2"];
    let output = Command::new(cargo).args(arguments).arg("--manifest-path").arg(workspace).output();
    let output = output.expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo answers in JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let sdk = packages.iter().find(|package| package["name"] == "inferlet").expect("the SDK is locked");
    assert_eq!(sdk["version"], "0.2.0", "the version of the contract");
    let manifest = PathBuf::from(sdk["manifest_path"].as_str().expect("a path"));
    manifest.with_file_name("wit")
}

fn resolve() -> Resolve {
    // Gated ones too: `exit-with-code` is in WASI 0.2 behind a feature.
    let mut resolve = Resolve { all_features: true, ..Resolve::default() };
    resolve.push_dir(published_wit()).expect("the published WIT is sound");
    resolve
}

fn shape(resolve: &Resolve, ty: &Type) -> Shape {
    let boxed = |ty: &Type| Box::new(shape(resolve, ty));
    match ty {
        Type::Bool => Shape::Bool,
        Type::U8 => Shape::U8,
        Type::S8 => Shape::S8,
        Type::U16 => Shape::U16,
        Type::S16 => Shape::S16,
        Type::U32 => Shape::U32,
        Type::S32 => Shape::S32,
        Type::U64 => Shape::U64,
        Type::S64 => Shape::S64,
        Type::F32 => Shape::F32,
        Type::F64 => Shape::F64,
        Type::Char => Shape::Char,
        Type::String => Shape::String,
        Type::ErrorContext => panic!("no function of ours has an error context"),
        Type::Id(id) => match &resolve.types[*id].kind {
            TypeDefKind::Type(of) => shape(resolve, of),
            TypeDefKind::List(of) => Shape::List(boxed(of)),
            TypeDefKind::Option(of) => Shape::Option(boxed(of)),
            TypeDefKind::Tuple(tuple) => Shape::Tuple(tuple.types.iter().map(|ty| *boxed(ty)).collect()),
            TypeDefKind::Record(record) => {
                Shape::Tuple(record.fields.iter().map(|field| *boxed(&field.ty)).collect())
            }
            TypeDefKind::Result(result) => {
                Shape::Result(result.ok.as_ref().map(boxed), result.err.as_ref().map(boxed))
            }
            TypeDefKind::Enum(cases) => Shape::Enum(cases.cases.len()),
            TypeDefKind::Flags(flags) => Shape::Flags(flags.flags.len()),
            TypeDefKind::Variant(variant) => {
                let case = |ty: &Option<Type>| ty.as_ref().map(|ty| *boxed(ty));
                Shape::Variant(variant.cases.iter().map(|case_| case(&case_.ty)).collect())
            }
            TypeDefKind::Handle(Handle::Own(of)) => Shape::Own(resource(resolve, *of)),
            TypeDefKind::Handle(Handle::Borrow(of)) => Shape::Borrow(resource(resolve, *of)),
            other => panic!("no function of ours has a {}", other.as_str()),
        },
    }
}

/// A resource's name where it is defined, through any `use`.
fn resource(resolve: &Resolve, id: TypeId) -> String {
    match &resolve.types[id].kind {
        TypeDefKind::Type(Type::Id(of)) => resource(resolve, *of),
        _ => resolve.types[id].name.clone().expect("a resource has a name"),
    }
}

fn signature(resolve: &Resolve, function: &Function) -> Signature {
    Signature {
        parameters: function.params.iter().map(|(_, ty)| shape(resolve, ty)).collect(),
        result: function.result.as_ref().map(|ty| shape(resolve, ty)),
    }
}

/// What wit-parser says a guest imports, independently of our own flattening.
fn core_type(resolve: &Resolve, function: &Function) -> FuncType {
    let core = |ty: &WasmType| match ty {
        WasmType::I32 | WasmType::Pointer | WasmType::Length => ValType::I32,
        WasmType::I64 | WasmType::PointerOrI64 => ValType::I64,
        WasmType::F32 => ValType::F32,
        WasmType::F64 => ValType::F64,
    };
    let wasm = resolve.wasm_signature(AbiVariant::GuestImport, function);
    FuncType::new(wasm.params.iter().map(core), wasm.results.iter().map(core))
}

fn resources(resolve: &Resolve, id: InterfaceId) -> Vec<&str> {
    let types = resolve.interfaces[id].types.iter();
    let own = types.filter(|(_, ty)| matches!(resolve.types[**ty].kind, TypeDefKind::Resource));
    own.map(|(name, _)| name.as_str()).collect()
}

/// Every difference between `ours` and the WIT interface `id`, one line each. Of WASI we offer a part; of the guest
/// world and of HTTP everything must be there, but what is not stable yet.
fn differences(resolve: &Resolve, id: InterfaceId, ours: Option<&Interface>) -> Vec<String> {
    let name = resolve.id_of(id).expect("a named interface");
    let whole = name.starts_with("inferlet:") || name.starts_with("wasi:http/");
    let Some(ours) = ours else {
        return if whole { vec![format!("{name} is missing")] } else { vec![] };
    };
    let mut found = Vec::new();
    let wit = &resolve.interfaces[id];
    for (function, published) in &wit.functions {
        let Some(host) = ours.function(function) else {
            if whole && !matches!(published.stability, Stability::Unstable { .. }) {
                found.push(format!("{name}.{function} is missing"));
            }
            continue;
        };
        let wanted = signature(resolve, published);
        if host.signature != wanted {
            found.push(format!("{name}.{function} is {}, and the WIT says {wanted}", host.signature));
        }
        let (core, wanted) = (host.signature.lowered(), core_type(resolve, published));
        if core != wanted {
            found
                .push(format!("{name}.{function} is {core:?} in core wasm, and the WIT makes it {wanted:?}"));
        }
    }
    for function in ours.functions.iter().filter(|function| !wit.functions.contains_key(function.name)) {
        found.push(format!("{name}.{} is not in the WIT", function.name));
    }
    let (theirs, ours) = (resources(resolve, id), &ours.resources);
    for resource in theirs.iter().filter(|name| whole && !ours.iter().any(|own| own.name == **name)) {
        found.push(format!("{name}: the resource {resource} is missing"));
    }
    for resource in ours.iter().filter(|own| !theirs.contains(&own.name)) {
        found.push(format!("{name}: the resource {} is not in the WIT", resource.name));
    }
    found
}

#[test]
fn every_function_of_the_guest_world_is_here_with_its_very_types() {
    let resolve = resolve();
    let mut checked = 0;
    let mut found = Vec::new();
    for (id, wit) in resolve.interfaces.iter() {
        let Some(name) = resolve.id_of(id) else { continue };
        // The entry points are the guest's exports.
        if name == "inferlet:core/run" || name.starts_with("wasi:http/incoming-handler@") {
            continue;
        }
        let ours = interfaces().iter().find(|ours| ours.name == without_patch(&name));
        found.extend(differences(&resolve, id, ours));
        checked += if name.starts_with("inferlet:") { wit.functions.len() } else { 0 };
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(checked, 79, "functions of the guest world, drops of resources not counted");
}

/// The check itself notices what it is there for.
#[test]
fn a_missing_function_or_a_type_that_is_off_is_noticed() {
    use super::{Cx, Trap};
    let resolve = resolve();
    let kvs = resolve.interfaces.iter().find_map(|(id, _)| {
        let name = resolve.id_of(id)?;
        (name == "inferlet:core/kvs").then_some(id)
    });
    let kvs = kvs.expect("the WIT has kvs");
    // The same core signature as the right one, string for list<u8>.
    fn get(_: &mut Cx, _: String) -> Result<Option<Vec<u8>>, Trap> {
        Ok(None)
    }
    fn exists(_: &mut Cx, _: String) -> Result<u64, Trap> {
        Ok(0)
    }
    let wrong = Interface::new("inferlet:core/kvs").call("store-get", get).call("store-exists", exists);
    let found = differences(&resolve, kvs, Some(&wrong)).join("\n");
    for expected in [
        "store-get is (string) -> option<list<u8>>, and the WIT says (string) -> option<string>",
        "store-exists is (string) -> u64, and the WIT says (string) -> bool",
        "store-exists is FuncType",
        "store-set is missing",
        "store-list-keys is missing",
    ] {
        assert!(found.contains(expected), "no {expected:?} in:\n{found}");
    }
    assert_eq!(differences(&resolve, kvs, None), ["inferlet:core/kvs is missing"]);
}

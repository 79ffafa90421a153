//! Which configurations are promises that hold, and the sentences about the others.

use super::*;
use crate::quota::NONE;

fn checked(text: &str, flags: Flags) -> Result<Config, String> {
    let raw: Raw = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    Config::check(raw, flags, Path::new("/etc/tartlet"))
}

fn no_auth() -> Flags {
    Flags { no_auth: true, model: Some("m.gguf".into()), state: Some("/s".into()), ..Flags::default() }
}

/// The template is the documentation: what it sets is what an empty file means, and no key is missing in it.
#[test]
fn the_template_says_what_the_code_does() {
    let strip = |line: &'static str| {
        line.strip_prefix("# ").filter(|rest| rest.contains(" = ") && !rest.contains("  ")).unwrap_or(line)
    };
    let active: String = TEMPLATE.lines().map(strip).flat_map(|line| [line, "\n"]).collect();
    let raw: toml::Table = toml::from_str(&active).expect("the template with every key set parses");
    let sections: Vec<&str> = raw.keys().map(String::as_str).collect();
    assert_eq!(
        sections,
        ["auth", "engine", "hosts", "http", "listen", "log", "model", "openai", "origins", "quotas", "state"]
    );
    for (section, keys) in [
        ("auth", &["enabled", "public_keys", "revoked"] as &[&str]),
        (
            "engine",
            &[
                "backend",
                "batch_tokens",
                "embeds",
                "kv_cache",
                "kv_tokens",
                "libcuda",
                "page_size",
                "prefix_reuse",
                "seed",
                "threads",
            ],
        ),
        ("http", &["allow"]),
        ("model", &["name", "path", "public_prefixes", "template"]),
        ("openai", &["port", "program"]),
    ] {
        let found: Vec<&str> = raw[section].as_table().expect("a table").keys().map(String::as_str).collect();
        assert_eq!(found, keys, "[{section}]");
    }
    let (template, empty) = (checked(TEMPLATE, no_auth()).unwrap(), checked("", no_auth()).unwrap());
    assert_eq!(format!("{template:?}"), format!("{empty:?}"));
    // Every quota in the table's order; those that have a value with it, the others commented out.
    let (_, section) = TEMPLATE.split_once("[quotas]\n").expect("the section is there");
    let section = section.split("\n[").next().unwrap_or(section);
    let lines = section.lines().filter(|line| line.contains(" = "));
    let told: Vec<String> = lines.map(str::to_owned).collect();
    let rows = Name::TABLE.iter().zip(&told).map(|(row, told)| match row.default {
        NONE => told.strip_prefix(&format!("# {} = ", row.key)).map(|_| told.clone()).unwrap_or_default(),
        _ if of_one_subject(row.name) => format!("# {} = {}", row.key, row.default),
        value => format!("{} = {value}", row.key),
    });
    assert_eq!(rows.collect::<Vec<_>>(), told);
    assert_eq!(told.len(), Name::TABLE.len());
}

/// Quotas whose value depends on whether there are several subjects.
fn of_one_subject(name: Name) -> bool {
    matches!(name, Name::SubjectInstances | Name::SubjectMemoryBytes | Name::SubjectUnreadBytes)
}

#[test]
fn what_runs_the_model_is_chosen_by_name() {
    let engine = |text: &str, flags: Flags| checked(text, flags).map(|config| config.engine);
    let flags = |backend: &str| Flags {
        backend: Some(backend.to_owned()),
        libcuda: Some("l.so".into()),
        ..no_auth()
    };
    for (name, which) in [("auto", None), ("cuda", Some(Which::Cuda)), ("cpu", Some(Which::Cpu))] {
        let text = format!("[engine]\nbackend = \"{name}\"\nlibcuda = \"drv/libcuda.so.1\"");
        let of_file = engine(&text, no_auth()).unwrap();
        assert_eq!(of_file.backend, which);
        assert_eq!(of_file.libcuda.as_deref(), Some(Path::new("/etc/tartlet/drv/libcuda.so.1")));
        // The command line wins, and a configuration of what was read means the same.
        let of_flags = engine("[engine]\nbackend = \"cpu\"\nlibcuda = \"x\"", flags(name)).unwrap();
        assert_eq!((of_flags.backend, of_flags.libcuda.as_deref()), (which, Some(Path::new("l.so"))));
        let again = engine(&of_file.section(), no_auth()).unwrap();
        assert_eq!((again.backend, again.libcuda), (of_file.backend, of_file.libcuda));
    }
    let said = engine("[engine]\nbackend = \"gpu\"", no_auth()).expect_err("no such backend");
    assert_eq!(said, "[engine] backend = \"gpu\" is none of auto, cuda, cpu.");
}

#[test]
fn quotas_are_set_by_name_and_one_subject_alone_may_have_everything() {
    let text =
        "[quotas]\nfuel = 5\nsubject_fuel_per_second = 7\nsubject_memory_bytes = 9\ntotal_instances = 3";
    let quotas = checked(text, no_auth()).unwrap().quotas;
    let get = |name| quotas.get(name);
    assert_eq!((get(Name::Fuel), get(Name::SubjectFuelPerSecond), get(Name::SubjectMemoryBytes)), (5, 7, 9));
    assert_eq!((get(Name::SubjectInstances), get(Name::LogBytes)), (3, limits::LOG_BYTES as u64));
    let key = crate::auth::SecretKey::generate().unwrap().public();
    let flags = || Flags { model: Some("m.gguf".into()), state: Some("/s".into()), ..Flags::default() };
    let text = format!("[auth]\npublic_keys = [\"{key}\"]");
    assert_eq!(checked(&text, flags()).unwrap().quotas, Quotas::default());
}

#[test]
fn a_wrong_value_is_named_with_the_mend() {
    let with_model = || Flags { model: Some("m.gguf".into()), ..Flags::default() };
    for (text, flags, part) in [
        ("", Flags::default(), "No model: give --model"),
        ("", with_model(), "no public key is known"),
        ("listen = \"0.0.0.0:1\"", no_auth(), "only a loopback address"),
        ("listen = \"localhost\"", no_auth(), "is not ADDRESS:PORT"),
        ("[engine]\npage_size = 0", no_auth(), "[engine] page_size = 0 is outside 1 to"),
        ("[engine]\nthreads = 0", no_auth(), "[engine] threads = 0"),
        ("[engine]\npagesize = 3", no_auth(), "unknown field `pagesize`"),
        ("[engine]\nkv_cache = \"q4\"", no_auth(), "kv_cache is \"q4\", but should be one of f32, f16, q8"),
        ("[engine]\nthreads = -1", no_auth(), "-1 is below 0"),
        ("[engine]\nseed = \"x\"", no_auth(), "expected a whole number"),
        ("[engine]\nkv_tokens = 5000000000", no_auth(), "or too large"),
        ("[openai]\nport = 65536", no_auth(), "65536 is below 0 or too large"),
        ("", Flags { openai: Some("http".into()), ..no_auth() }, "--openai http is no port"),
        ("engine = 3", no_auth(), "expected the section [engine]"),
        ("[model]\nname = \"\"", no_auth(), "[model] name = \"\" is no name"),
        (
            "[model]\npublic_prefixes = [\"none.txt\"]",
            no_auth(),
            "public_prefixes: /etc/tartlet/none.txt cannot",
        ),
        ("[quotas]\nfule = 5", no_auth(), "[quotas] fule: there is no quota \"fule\"; there are fuel, "),
        ("[quotas]\nhandles = 70000", no_auth(), "handles = 70000 is above 65536"),
        ("[quotas]\nfuel = -1", no_auth(), "-1 is below 0"),
        ("[quotas]\nfuel = \"x\"", no_auth(), "expected a whole number"),
        ("log = \"loud\"", no_auth(), "none of error, warn"),
        (
            "[http]\nallow = [\"*.a\"]",
            no_auth(),
            "[http] allow: \"*.a\" is a pattern; each host is named in full.",
        ),
        ("[http]\nallow = [\"https://a\"]", no_auth(), "\"https://a\" names the scheme https; only http is"),
        ("[auth]\npublic_keys = [\"k4.secret.x\"]", with_model(), "[auth] public_keys: "),
    ] {
        let sentence = checked(text, flags).expect_err(text);
        assert!(sentence.contains(part), "{text:?}: {sentence}");
    }
}

#[test]
fn an_engine_section_means_what_it_was_made_from() {
    let text = "[engine]\nkv_tokens = 1000\npage_size = 32\nembeds = 7\nbatch_tokens = 48\nkv_cache = \"q8\"\nprefix_reuse = false\nseed = 5";
    let engine = checked(text, no_auth()).unwrap().engine.with_threads(Some(3)).unwrap();
    let again = checked(&engine.section(), no_auth()).unwrap().engine;
    assert_eq!(format!("{again:?}"), format!("{engine:?}"));
    assert_eq!((again.kv_tokens, again.prefix_reuse, again.threads), (Some(1000), false, 3));
    assert!(again.with_threads(Some(0)).is_err_and(|sentence| sentence.contains("threads = 0")));
}

#[test]
fn files_named_in_the_configuration_lie_beside_it() {
    let config = checked(
        "[model]\npath = \"a.gguf\"\n[auth]\nenabled = false",
        Flags { state: Some("/s".into()), ..Flags::default() },
    );
    assert_eq!(config.unwrap().model.path, Path::new("/etc/tartlet/a.gguf"));
    let config = checked("[openai]\nport = 1\nprogram = \"o.wasm\"", no_auth()).unwrap();
    assert_eq!(config.openai.unwrap().program, Path::new("/etc/tartlet/o.wasm"));
}

//! `#[inferlet::main]` for the published SDK (crates.io `inferlet` 0.2.0).
//!
//! The macro crate published beside that SDK was written for an earlier one and does not compile with it. This one
//! takes its place by `[patch.crates-io]`. It owns the step from an `async fn` to the component's export
//! `inferlet:core/run`; it never changes the function itself.
//!
//! ```ignore
//! use inferlet::{Args, Result};
//!
//! #[inferlet::main]
//! async fn main(mut args: Args) -> Result<String> {
//!     let name: String = args.value_from_str("--name")?;
//!     Ok(format!("Hello, {name}."))
//! }
//! ```
//!
//! - The parameter may be left out. Arguments are those of the launch; there is no program name before them.
//! - `Ok(value)` sets the instance's return value to `value.to_string()`; `Ok(())` leaves it empty.
//! - `Err(error)` ends the instance with the error and its causes in one line.
//! - The error type is anything with `Display`: the SDK's `Result`, `String`, an enum of yours.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// Makes an `async fn` the entry point of an inferlet. See the crate's documentation.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        return refuse("#[inferlet::main] takes no arguments");
    }
    match entry(item.clone()) {
        Ok(function) => [item, function.export()].into_iter().collect(),
        Err(why) => [refuse(why), item].into_iter().collect(),
    }
}

/// What the export must know of the function it calls.
struct Entry {
    name: String,
    takes_arguments: bool,
}

/// Reads `… async fn NAME (…) …`; everything else about the function is the compiler's to check.
fn entry(item: TokenStream) -> Result<Entry, &'static str> {
    let mut tokens = item.into_iter();
    let mut is_async = false;
    loop {
        match tokens.next() {
            Some(TokenTree::Ident(word)) if word.to_string() == "async" => is_async = true,
            Some(TokenTree::Ident(word)) if word.to_string() == "fn" => break,
            Some(_) => {}
            None => return Err("#[inferlet::main] belongs on an `async fn`"),
        }
    }
    if !is_async {
        return Err("#[inferlet::main] needs an `async fn`: waiting for the model is what an inferlet does");
    }
    let Some(TokenTree::Ident(name)) = tokens.next() else {
        return Err("#[inferlet::main] found no function name");
    };
    match tokens.next() {
        Some(TokenTree::Group(parameters)) if parameters.delimiter() == Delimiter::Parenthesis => {
            Ok(Entry { name: name.to_string(), takes_arguments: !parameters.stream().is_empty() })
        }
        _ => Err("#[inferlet::main] does not fit a generic function"),
    }
}

impl Entry {
    /// The export. In a block of its own, so that none of its names meets one of the program's.
    fn export(&self) -> TokenStream {
        let name = &self.name;
        let arguments = if self.takes_arguments {
            "::inferlet::Args::from_vec(::inferlet::get_arguments().into_iter().map(Into::into).collect())"
        } else {
            ""
        };
        format!(
            r#"const _: () = {{
                struct Inferlet;

                // `()` returns nothing and everything else its text: a method on the value itself is found before
                // one on a reference to it, so the first implementation wins where both could apply.
                struct Returned<T>(T);
                trait Nothing {{ fn set(&self); }}
                impl Nothing for Returned<()> {{ fn set(&self) {{}} }}
                trait Text {{ fn set(&self); }}
                impl<T: ::std::fmt::Display> Text for &Returned<T> {{
                    fn set(&self) {{ ::inferlet::set_return(&self.0.to_string()); }}
                }}

                impl ::inferlet::api::Guest for Inferlet {{
                    fn run() -> ::std::result::Result<(), ::std::string::String> {{
                        ::inferlet::wstd::runtime::block_on(async {{
                            match {name}({arguments}).await {{
                                Ok(value) => {{ (&Returned(value)).set(); Ok(()) }}
                                Err(error) => Err(::std::format!("{{error:#}}")),
                            }}
                        }})
                    }}
                }}

                ::inferlet::api::export!(Inferlet with_types_in ::inferlet::api);
            }};"#
        )
        .parse()
        .expect("the text above is Rust")
    }
}

fn refuse(why: &str) -> TokenStream {
    format!("::core::compile_error!({why:?});").parse().expect("one macro call")
}

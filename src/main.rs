//! Arguments to one call.

fn main() -> std::process::ExitCode {
    tartlet::cli::main(std::env::args_os().skip(1))
}

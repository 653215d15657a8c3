//! See the library, which exists separately only to let its parts be fuzzed.

fn main() -> std::process::ExitCode {
    binder::main()
}

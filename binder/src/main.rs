//! See the library: a program of its own only in name, so that its parts can be fuzzed.

fn main() -> std::process::ExitCode {
    binder::main()
}

//! The `litefs` program: hands the command line to the library.

fn main() -> std::process::ExitCode {
    litefs::cli::main()
}

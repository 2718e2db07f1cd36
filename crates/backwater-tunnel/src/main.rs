//! The program.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let _logs = backwater_ops::Logs::to_stdout("info");
    match args[1].as_str() {
        "up" => backwater_tunnel::commands::up::run(std::path::Path::new(&args[2]), Default::default(), |_| Ok(())),
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(backwater_tunnel::commands::status::run(None, false, false)),
    }
}

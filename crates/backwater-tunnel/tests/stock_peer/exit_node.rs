//! The exit node of the manual: its commands, run as they are written.

use std::process::Command;

use crate::support::{
    Network, Process, in_namespace,
    traffic::transfer,
    tunnel::{Directory, PROGRAM},
    v4, v6,
};

const PROGRAMS: &[(&str, &str)] =
    &[("nft", "nftables"), ("sysctl", "procps"), ("sed", "sed"), ("ping", "iputils-ping")];

/// The world has no route to the addresses inside the tunnel: its answers show that they were translated.
#[test]
fn exit_node_of_the_manual_takes_traffic_to_the_world() {
    in_namespace("exit_node::exit_node_of_the_manual_takes_traffic_to_the_world", PROGRAMS, || {
        let (client, server, world) = (Network::new("client"), Network::new("server"), Network::new("world"));
        server.join(&client, 1);
        server.join(&world, 2);
        let directory = Directory::new();
        let endpoint = format!("{}:51820", v4(1, 1));
        let place = directory.path.to_str().unwrap();
        server.run(&format!("{PROGRAM} generate --endpoint {endpoint} --dir {place}"));
        let [on_client, on_server] = commands();
        for line in on_client {
            let status = Command::new("sh").args(["-c", line]).current_dir(&directory.path).status().unwrap();
            assert!(status.success(), "{line}");
        }
        let up = |network: &Network, name: &str| {
            let file = directory.path.join(format!("{name}.conf"));
            let mut command = network.command_of([PROGRAM, "up", file.to_str().unwrap()]);
            command.env("XDG_CACHE_HOME", place).env("XDG_RUNTIME_DIR", "/run").env_remove("NOTIFY_SOCKET");
            let process = Process::spawn(name, command);
            process.wait_for(&format!("{name} is up"));
            process
        };
        let _server = up(&server, "server");
        for line in on_server {
            let status = server.command_of(["sh", "-c", line]).status().unwrap();
            assert!(status.success(), "{line}");
        }
        let _client = up(&client, "client");
        for address in [v4(2, 2), v6(2, 2)] {
            client.run_until(&format!("ping -c 1 -W 5 {address}"));
            transfer(&client, &world, address, 2);
        }
        server.run("nft delete table inet exit");
    });
}

/// The lines of the section's two blocks: the client's and the server's.
fn commands() -> [Vec<&'static str>; 2] {
    let manual = include_str!("../../../../docs/tunnel.md");
    let section = manual.split("\n## ").find(|section| section.starts_with("An exit node\n")).unwrap();
    let mut blocks = section.split("```").skip(1).step_by(2).map(|block| block.trim().lines().collect());
    std::array::from_fn(|_| blocks.next().unwrap())
}

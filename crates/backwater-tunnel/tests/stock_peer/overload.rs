//! More is sent than can be carried.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{getpriority_process, setpriority_process};

use crate::support::{
    Process, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAMS, Sides, THERE},
};

#[test]
fn who_sends_without_limit_is_taken_in_trains() {
    in_namespace("overload::who_sends_without_limit_is_taken_in_trains", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        // It goes before others if that is permitted, nobody has chosen, and there are others that can run meanwhile.
        let chosen = getpriority_process(None).unwrap();
        let permitted = thread::spawn(|| setpriority_process(None, -15).is_ok()).join().unwrap();
        let one_core = fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim() == "0";
        assert_eq!(tunnel.niceness(), if permitted && chosen == 0 && !one_core { -15 } else { chosen.into() });

        let target = SocketAddr::new(THERE[0], 7000);
        let sink = sides.there.within(move || UdpSocket::bind(target).unwrap());
        let counters = || {
            let status = tunnel.status();
            ["sent_total", "send_attempts_total"].map(|name| status["transport"][name].as_f64().unwrap())
        };
        let before = counters();
        let sending = sides.here.spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let until = Instant::now() + Duration::from_secs(2);
            let mut sent = 0.0;
            while Instant::now() < until {
                sent += f64::from(socket.send_to(&[0; 100], target).is_ok());
            }
            sent
        });
        thread::sleep(Duration::from_secs(1));
        // Whoever asks is answered meanwhile.
        counters();
        let offered = sending.join().unwrap();
        let after = counters();
        let [sent, calls] = [0, 1].map(|at| after[at] - before[at]);
        eprintln!("{offered} offered, {sent} sent in {calls} calls");
        assert!(sent <= offered + 100.0 && sent > offered / 100.0, "{sent} of {offered}");
        assert!(sent > 8.0 * calls, "{sent} in {calls} calls");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        drop(sink);
    });
}

#[test]
fn its_session_may_be_outside_of_its_container() {
    in_namespace("overload::its_session_may_be_outside_of_its_container", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let file = sides.directory.file("bw0.conf", &sides.configuration("", "Endpoint = 10.9.1.2:51820"));
        // There `getsid` is 0. Who asks is root.
        let container = ["unshare", "--pid", "--fork", "--kill-child"];
        let tunnel = Process::spawn("tunnel", sides.program_by(&container, ["up", file.to_str().unwrap()]));
        tunnel.wait_for(&format!("{NAME} is up"));
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
    });
}

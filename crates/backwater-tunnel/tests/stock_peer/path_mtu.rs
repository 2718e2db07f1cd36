//! The way to the peer takes shorter packets than the device's MTU promises.

use crate::support::{
    Network, in_namespace,
    traffic::transfer,
    tunnel::{PROGRAMS, Sides, THERE},
};

#[test]
fn what_is_too_long_for_the_path_is_told_to_the_local_host() {
    in_namespace("path_mtu::what_is_too_long_for_the_path_is_told_to_the_local_host", PROGRAMS, || {
        let (sides, router) = (Sides::apart(), Network::new("router"));
        sides.here.join(&router, 1);
        router.join(&sides.there, 2);
        router.run("sysctl -q -w net.ipv4.ip_forward=1");
        sides.here.run("ip route add 10.9.2.0/24 via 10.9.1.2");
        sides.there.run("ip route add 10.9.1.0/24 via 10.9.2.1");
        router.run("ip link set fe2 mtu 1400");
        let _stock = sides.stock("");
        let tunnel = sides.up("", "Endpoint = 10.9.2.2:51820");
        for to in THERE {
            transfer(&sides.here, &sides.there, to, 5);
        }
        assert!(tunnel.device("too_big") > 0, "{:#}", tunnel.status());
    });
}

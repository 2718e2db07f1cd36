use super::*;

#[test]
fn a_host_is_an_address_or_localhost() {
    for host in ["127.0.0.1", "127.0.0.1:9479", "[::1]", "[::1]:9479", "localhost", "LocalHost:80"] {
        assert!(is_address(host), "{host}");
    }
    for host in ["", "example.org", "example.org:9479", "127.0.0.1.example.org", "localhost.example.org:1"] {
        assert!(!is_address(host), "{host}");
    }
}

#[test]
fn token_is_compared_as_a_whole() {
    let headers = |value: &str| [(AUTHORIZATION, value.parse().unwrap())].into_iter().collect::<HeaderMap>();
    assert!(has_token(&headers("Bearer a long token"), "a long token"));
    for value in
        ["", "Bearer ", "Bearer a long toke", "Bearer a long token ", "Bearer b long token", "Basic a long token"]
    {
        assert!(!has_token(&headers(value), "a long token"), "{value}");
    }
    assert!(!has_token(&HeaderMap::new(), "a long token"));
}

/// The description is written by hand: each route is in it, and nothing else.
#[test]
fn openapi_describes_each_route() {
    let described: serde_json::Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
    let mut described: Vec<_> = described["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods =
                item.as_object().unwrap().keys().filter(|key| !["parameters", "summary"].contains(&key.as_str()));
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let name = |method| match method {
        MethodFilter::GET => "GET",
        MethodFilter::PUT => "PUT",
        MethodFilter::POST => "POST",
        MethodFilter::DELETE => "DELETE",
        method => panic!("{method:?}"),
    };
    let mut routes: Vec<_> =
        Routes::new().listed.iter().map(|&(method, path)| format!("{} {path}", name(method))).collect();
    described.sort();
    routes.sort();
    assert_eq!(described, routes);
}

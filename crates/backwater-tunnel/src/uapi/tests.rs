use super::*;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// What a connection answers to this, with an event loop that takes everything. How many sets it took.
fn talk(request: &[u8]) -> (String, usize) {
    run(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (requests, mut asked) = mpsc::channel(1);
        let conversation = tokio::spawn(converse(theirs, requests, PATIENCE));
        let event_loop = tokio::spawn(async move {
            let mut sets = 0;
            while let Some(request) = asked.recv().await {
                match request {
                    Request::Get(asker) => {
                        let mut answer = Answer::new(0, 0);
                        answer.interface(None, 51820, 0);
                        let _ = asker.send(answer);
                    }
                    Request::Set(_, asker) => {
                        sets += 1;
                        let _ = asker.send(Ok(()));
                    }
                }
            }
            sets
        });
        let (mut reader, mut writer) = ours.into_split();
        let request = request.to_vec();
        let write = tokio::spawn(async move {
            // It may be closed before everything was read.
            let _ = writer.write_all(&request).await;
        });
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        let _ = write.await;
        let _ = conversation.await;
        (String::from_utf8(answer).unwrap(), event_loop.await.unwrap())
    })
}

#[test]
fn requests_are_answered_one_after_the_other_with_their_errno() {
    let key = "00".repeat(32);
    let request = format!(
        "get=1\n\nset=1\nlisten_port=1\n\nset=1\nlisten_port=x\nno line\n\nset=1\npublic_key={key}\nno line\n\n\
         get=1\nlisten_port=1\n\nset=1\n\n"
    );
    let expected = "listen_port=51820\nerrno=0\n\nerrno=0\n\nerrno=-22\n\nerrno=-71\n\nerrno=-22\n\nerrno=0\n\n";
    assert_eq!(talk(request.as_bytes()), (expected.to_owned(), 2));
}

#[test]
fn request_that_ends_with_its_connection_is_not_done() {
    for request in ["", "set=1", "set=1\n", "set=1\nlisten_port=1\n", "get=1\n"] {
        assert_eq!(talk(request.as_bytes()), (String::new(), 0), "{request:?}");
    }
}

#[test]
fn what_is_no_request_is_refused_and_ends_the_connection() {
    for request in ["\n", "get=2\n\nget=1\n\n", "hello\n\nget=1\n\n"] {
        assert_eq!(talk(request.as_bytes()), ("errno=-22\n\n".to_owned(), 0), "{request:?}");
    }
}

#[test]
fn request_that_is_too_long_is_refused_as_a_whole() {
    let long_line = [b"set=1\nfwmark=", &[b'1'; MAX_LINE][..], b"\n\n"].concat();
    assert_eq!(talk(&long_line), ("errno=-7\n\n".to_owned(), 0));
    let many_lines = [b"set=1\n", "fwmark=1\n".repeat(MAX_REQUEST / 9 + 1).as_bytes(), b"\n"].concat();
    let (answer, sets) = talk(&many_lines);
    // Whoever still writes may not see it.
    assert!((answer.is_empty() || answer == "errno=-7\n\n") && sets == 0, "{answer}");
}

#[test]
fn slow_client_is_given_up() {
    run(async {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"set=1\nlisten_port=1\n").await.unwrap();
        let (requests, _asked) = mpsc::channel(1);
        let error = converse(theirs, requests, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(ours.read(&mut [0; 16]).await.unwrap(), 0, "closed without an answer");
    });
}

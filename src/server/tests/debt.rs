//! Clients whose subject has used more of the io thread than its part: what rests, and what does not.

use super::*;
use std::time::Instant;

/// Bytes of a blob of which each piece may rest 100 ms.
const LONG: usize = 300 * limits::CHUNK_BYTES;

#[test]
fn an_end_waits_for_no_rest_of_what_is_sent_before_it() {
    let server = Server::open();
    server.house.0.owes.store(true, Ordering::Relaxed);
    test(async {
        let mut client = server.client().await;
        let since = Instant::now();
        let floods = launch(&mut client, &[&format!("blob {LONG}"), "wait"]).await;
        // Its blob waits for the other's, and with its end that no longer rests.
        let ends = launch(&mut client, &["blob 1"]).await;
        assert_eq!(client.next_event(&ends).await.unwrap(), Event::Blob(blob(1)));
        assert_eq!(client.next_event(&ends).await.unwrap(), completed());
        assert_eq!(client.next_event(&floods).await.unwrap(), Event::Blob(blob(LONG)));
        assert!(since.elapsed() < Duration::from_secs(20), "with rests it takes half a minute");

        // Neither does the end that it asks for, though all else that it says does.
        let since = Instant::now();
        for _ in 0..3 {
            client.query("program_exists", "x").await.unwrap();
        }
        assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
        client.terminate(&floods).await.unwrap();
        assert!(matches!(client.next_event(&floods).await.unwrap(), Event::Ended { .. }));
    });
}

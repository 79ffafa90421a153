//! More connections than there may be: who is turned away, and who is not.

use super::*;

#[test]
fn web_pages_and_a_crowd_are_turned_away() {
    let server = Server::open();
    test(async {
        let mut page = server.tcp().await;
        page.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        page.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        drop(page);

        // Every seat is taken: some by clients, the rest by handshakes that do not begin.
        let mut client = server.client().await;
        let mut idle = Vec::new();
        let turned_away = loop {
            let mut stream = server.tcp().await;
            let mut first = [0; 12];
            let told = async { stream.read_exact(&mut first).await.is_ok() };
            let quiet = async {
                smol::Timer::after(Duration::from_millis(if idle.len() < limits::CONNECTIONS - 2 {
                    1
                } else {
                    200
                }))
                .await;
                false
            };
            if or(told, quiet).await {
                break first;
            }
            idle.push(stream); // it has a place, or was told too late: then the next one is
        };
        assert_eq!(&turned_away, b"HTTP/1.1 503");
        assert!(!client.program_exists("x").await.unwrap(), "who is in is served");
        drop(idle);
        while Client::connect(&server.url).await.is_err() {
            smol::Timer::after(Duration::from_millis(5)).await;
        }
    });
}

/// Those who only hold a seat, without a token or with one, keep nobody else out.
#[test]
fn a_full_house_lets_an_honest_subject_in() {
    let (server, key) = guarded();
    let token =
        |subject: &str| mint(&key, &Claims::new(subject, Role::User, Duration::from_secs(3600))).unwrap();
    let enter = async |token: &Token| {
        let mut client = server.client().await;
        client.authenticate(token).await.map(|_| client)
    };
    test(async {
        let mut first = enter(&token("first")).await.unwrap();
        // Twice as many as there may be strangers: some before their handshake, some behind it.
        let (mut silent, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..limits::STRANGERS {
            silent.push(server.tcp().await);
            waiting.push(server.client().await);
        }
        let greedy = token("greedy");
        let mut own = Vec::new();
        let refused = loop {
            match enter(&greedy).await {
                Ok(client) => own.push(client),
                Err(refused) => break refused.to_string(),
            }
        };
        let most = limits::CONNECTIONS_PER_SUBJECT;
        assert!(refused.contains(&format!("Too many connections: {most} are yours")), "{refused}");
        assert_eq!(own.len(), most);
        let mut honest = enter(&token("honest")).await.unwrap();
        for client in [&mut first, &mut honest, &mut own[0]] {
            assert!(!client.program_exists("x").await.unwrap());
        }
        assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0, "whoever waited longest has made room");
        own.pop();
        while enter(&greedy).await.is_err() {
            smol::Timer::after(Duration::from_millis(5)).await;
        }
    });
}

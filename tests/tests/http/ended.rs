//! Operations that end their own transaction. Their writes may be committed, so they never run again.

use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::{App, HttpResponse, web};
use oncekey::Engine;
use oncekey::web::{Idempotency, Scope, Transaction};
use tests::http::{Protocol, Request};
use tests::rows::{Rows, RowsBackend};

use super::running::{Running, new_key};

async fn ends(calls: &AtomicUsize, transaction: &Transaction) -> Result<HttpResponse, actix_web::Error> {
    calls.fetch_add(1, Ordering::Relaxed);
    let ended = transaction.run(|rows: &mut Rows, _| {
        rows.0.extend(["an order".to_owned(), Rows::COMMIT.to_owned()]);
        Ok::<_, std::io::Error>(HttpResponse::Created().finish())
    });
    Ok(ended.await?)
}

async fn tells(calls: web::Data<AtomicUsize>, transaction: Transaction) -> Result<HttpResponse, actix_web::Error> {
    ends(&calls, &transaction).await
}

/// Treats every error as one that a retry may fix.
async fn hides(calls: web::Data<AtomicUsize>, transaction: Transaction) -> HttpResponse {
    ends(&calls, &transaction).await.unwrap_or_else(|_| HttpResponse::ServiceUnavailable().finish())
}

#[actix_rt::test]
async fn h10_a_transaction_that_may_be_committed_in_part_does_not_run_again() {
    for (path, status) in [("/tells", 500), ("/hides", 503)] {
        let store = RowsBackend::new();
        let guard = Idempotency::new(Engine::builder(store.clone()).start().unwrap(), Scope::shared()).required();
        let calls = web::Data::new(AtomicUsize::new(0));
        let data = calls.clone();
        let running = Running::start(move || {
            App::new()
                .app_data(data.clone())
                .wrap(guard.clone())
                .route("/tells", web::post().to(tells))
                .route("/hides", web::post().to(hides))
        })
        .await;
        let request = Request::post(path, "").key(&new_key()).by(Protocol::Http1);
        assert_eq!(request.send(running.address).await.status, status, "{path}");
        for _ in 0..2 {
            let again = request.send(running.address).await;
            assert_eq!((again.status, again.problem().as_str()), (409, "indeterminate"), "{path}");
        }
        assert_eq!((calls.load(Ordering::Relaxed), store.committed()), (1, vec!["an order".to_owned()]), "{path}");
        running.stop().await;
    }
}

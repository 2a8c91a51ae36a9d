//! Connection pools: the backend's own, or the application's, of any supported kind.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use diesel::result::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, deadpool as deadpools,
};
use diesel_async::{AnsiTransactionManager, AsyncConnection, TransactionManager as _};
use futures_util::future::{BoxFuture, FutureExt as _, ready};

use super::lent::try_if_idle;

/// A pool of diesel-async connections, created with `From` or `into()`: a deadpool pool, or with the feature `bb8` or
/// `mobc`, one of those. bb8 and mobc don't report their size: set it with the builder's `pool_size`.
///
/// ```
/// use diesel_async::AsyncPgConnection;
/// use diesel_async::pooled_connection::AsyncDieselConnectionManager;
/// use diesel_async::pooled_connection::deadpool::Pool;
/// use oncekey_backends::DieselPool;
///
/// let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new("postgres://shop@localhost/shop");
/// let pool = DieselPool::from(Pool::builder(manager).max_size(20).build()?);
/// # let _ = pool;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DieselPool<C: PoolConnection>(Kind<C>);

enum Kind<C: PoolConnection> {
    Deadpool(C::Deadpool),
    #[cfg_attr(not(any(feature = "bb8", feature = "mobc")), expect(dead_code, reason = "of the features bb8 and mobc"))]
    Other(Arc<dyn Lends<C>>),
}

/// A connection type that this crate supports, with its deadpool types, whose bounds can't be expressed generically.
pub trait PoolConnection: AsyncConnection<TransactionManager = AnsiTransactionManager> + Sized + 'static {
    #[doc(hidden)]
    type Deadpool: Clone + Send + Sync + 'static;
    #[doc(hidden)]
    type Object: DerefMut<Target = Self> + Send + 'static;

    #[doc(hidden)]
    fn lend(pool: &Self::Deadpool) -> impl Future<Output = Result<Self::Object, String>> + Send;
    #[doc(hidden)]
    fn take(object: Self::Object) -> Self;
    #[doc(hidden)]
    fn size(pool: &Self::Deadpool) -> usize;
    /// Returns when the connection was opened.
    #[doc(hidden)]
    fn made(object: &Self::Object) -> Instant;
    /// Creates a pool that opens connections on demand. It has no timeouts, because every call has the engine's
    /// deadline.
    #[doc(hidden)]
    fn pool<F>(connect: F, size: usize, tried: Tried) -> Self::Deadpool
    where
        F: Fn() -> BoxFuture<'static, ConnectionResult<Self>> + Send + Sync + 'static;
}

/// Which of a pool's connections are tested before they are lent.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// All, so that a server restart causes no errors.
    Always,
    /// Connections that were idle for a while. A busy connection is not tested each time.
    IfIdle,
}

/// The connections of one arbiter.
pub(crate) struct Connections<C: PoolConnection> {
    pub(crate) pool: DieselPool<C>,
    /// The pool's size, used if the pool does not report it.
    pub(crate) size: usize,
    /// Whether these are the backend's own connections, which wait for locks only briefly.
    pub(crate) are_own: bool,
}

impl<C: PoolConnection> Connections<C> {
    /// Returns the maximum number of connections.
    pub(crate) fn size(&self) -> usize {
        self.pool.size().unwrap_or(self.size)
    }
}

/// A pool of another kind.
trait Lends<C>: Send + Sync {
    fn lend(&self) -> BoxFuture<'_, Result<OtherPooled<C>, String>>;
}

/// A connection that returns to its pool when it is dropped, unless it is marked as broken.
type OtherPooled<C> = Box<dyn DerefMut<Target = C> + Send>;

impl<C: PoolConnection> DieselPool<C> {
    pub(crate) fn of(pool: C::Deadpool) -> Self {
        Self(Kind::Deadpool(pool))
    }

    pub(crate) async fn lend(&self) -> Result<Pooled<C>, String> {
        match &self.0 {
            Kind::Deadpool(pool) => C::lend(pool).await.map(Pooled::Deadpool),
            Kind::Other(pool) => pool.lend().await.map(Pooled::Other),
        }
    }

    /// Returns the maximum number of connections, if the pool reports it.
    pub(crate) fn size(&self) -> Option<usize> {
        match &self.0 {
            Kind::Deadpool(pool) => Some(C::size(pool)),
            Kind::Other(_) => None,
        }
    }

    /// Returns the pool itself if it is a deadpool pool; otherwise a pool whose error says that it is not.
    pub(crate) fn deadpool(&self) -> C::Deadpool {
        match &self.0 {
            Kind::Deadpool(pool) => pool.clone(),
            Kind::Other(_) => {
                let why = "this backend uses the application's pool, which is not deadpool's: lend connections from that pool";
                let refuse = move || ready(Err(ConnectionError::BadConnection(why.to_owned()))).boxed();
                C::pool(refuse, 1, Tried::IfIdle)
            }
        }
    }
}

impl<C: PoolConnection> Clone for DieselPool<C> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Kind::Deadpool(pool) => Kind::Deadpool(pool.clone()),
            Kind::Other(pool) => Kind::Other(Arc::clone(pool)),
        })
    }
}

impl<C: PoolConnection> fmt::Debug for DieselPool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DieselPool")
    }
}

macro_rules! pools_of {
    ($feature:literal, $connection:ty) => {
        #[cfg(feature = $feature)]
        impl PoolConnection for $connection {
            type Deadpool = deadpools::Pool<Self>;
            type Object = deadpools::Object<Self>;

            async fn lend(pool: &Self::Deadpool) -> Result<Self::Object, String> {
                pool.get().await.map_err(|error| error.to_string())
            }

            fn take(object: Self::Object) -> Self {
                deadpools::Object::take(object)
            }

            fn size(pool: &Self::Deadpool) -> usize {
                pool.status().max_size
            }

            fn made(object: &Self::Object) -> Instant {
                deadpools::Object::metrics(object).created
            }

            fn pool<F>(connect: F, size: usize, tried: Tried) -> Self::Deadpool
            where
                F: Fn() -> BoxFuture<'static, ConnectionResult<Self>> + Send + Sync + 'static,
            {
                let mut config = ManagerConfig::default();
                config.recycling_method = match tried {
                    Tried::Always => RecyclingMethod::Verified,
                    Tried::IfIdle => RecyclingMethod::Fast,
                };
                config.custom_setup = Box::new(move |_| connect());
                let manager = AsyncDieselConnectionManager::<Self>::new_with_config("", config);
                let try_if_idle = deadpools::Hook::async_fn(|connection, metrics| {
                    Box::pin(try_if_idle(connection, metrics.last_used()))
                });
                let pool = deadpools::Pool::builder(manager).max_size(size).pre_recycle(try_if_idle);
                // The only possible error is a timeout without a runtime, and there are no timeouts.
                pool.build().expect("a pool without time-outs")
            }
        }

        #[cfg(feature = $feature)]
        impl From<deadpools::Pool<$connection>> for DieselPool<$connection> {
            fn from(pool: deadpools::Pool<$connection>) -> Self {
                Self(Kind::Deadpool(pool))
            }
        }

        #[cfg(all(feature = $feature, feature = "bb8"))]
        other_pool!(diesel_async::pooled_connection::bb8::Pool<$connection>, get_owned, $connection);
        #[cfg(all(feature = $feature, feature = "mobc"))]
        other_pool!(diesel_async::pooled_connection::mobc::Pool<$connection>, get, $connection);
    };
}

#[cfg(any(feature = "bb8", feature = "mobc"))]
macro_rules! other_pool {
    ($pool:ty, $get:ident, $connection:ty) => {
        impl Lends<$connection> for $pool {
            fn lend(&self) -> BoxFuture<'_, Result<OtherPooled<$connection>, String>> {
                async {
                    let pooled = self.$get().await.map_err(|error| error.to_string())?;
                    Ok::<OtherPooled<$connection>, _>(Box::new(pooled))
                }
                .boxed()
            }
        }

        impl From<$pool> for DieselPool<$connection> {
            fn from(pool: $pool) -> Self {
                Self(Kind::Other(Arc::new(pool)))
            }
        }
    };
}

pools_of!("postgres", diesel_async::AsyncPgConnection);
pools_of!("mysql", diesel_async::AsyncMysqlConnection);

/// A connection of a pool.
pub(crate) enum Pooled<C: PoolConnection> {
    Deadpool(C::Object),
    Other(OtherPooled<C>),
}

impl<C: PoolConnection> Pooled<C> {
    /// Returns when the connection was opened, which identifies it within its pool. Only deadpool reports it.
    #[cfg(feature = "mysql")]
    pub(crate) fn made(&self) -> Option<Instant> {
        match self {
            Self::Deadpool(connection) => Some(C::made(connection)),
            Self::Other(_) => None,
        }
    }

    /// Takes the connection out of its pool permanently.
    pub(crate) fn take(self) -> Taken<C> {
        match self {
            Self::Deadpool(connection) => Taken::Own(C::take(connection)),
            Self::Other(connection) => Taken::Other(connection),
        }
    }
}

/// A connection that was taken out of its pool. It is closed when it is dropped.
pub(crate) enum Taken<C: PoolConnection> {
    Own(C),
    /// Keeps its place in the pool until it is dropped.
    Other(OtherPooled<C>),
}

impl<C: PoolConnection> Drop for Taken<C> {
    fn drop(&mut self) {
        if let Self::Other(connection) = self {
            // A pool closes a connection that comes back broken.
            AnsiTransactionManager::transaction_manager_status_mut(&mut ***connection).set_in_error();
        }
    }
}

impl<C: PoolConnection> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        match self {
            Self::Deadpool(connection) => connection,
            Self::Other(connection) => connection,
        }
    }
}

impl<C: PoolConnection> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        match self {
            Self::Deadpool(connection) => connection,
            Self::Other(connection) => connection,
        }
    }
}

impl<C: PoolConnection> Deref for Taken<C> {
    type Target = C;

    fn deref(&self) -> &C {
        match self {
            Self::Own(connection) => connection,
            Self::Other(connection) => connection,
        }
    }
}

impl<C: PoolConnection> DerefMut for Taken<C> {
    fn deref_mut(&mut self) -> &mut C {
        match self {
            Self::Own(connection) => connection,
            Self::Other(connection) => connection,
        }
    }
}

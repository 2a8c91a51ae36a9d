//! Where connections come from: a pool of the backend's own, or one of the application's, of whatever kind.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, deadpool as deadpools,
};
use diesel_async::{AnsiTransactionManager, AsyncConnection, TransactionManager as _};
use futures_util::future::{BoxFuture, FutureExt as _, ready};

/// A pool of diesel-async connections, made by `From` or `into()`: deadpool's, or with the feature `bb8` or `mobc` one of
/// these. Those two don't tell their size: say it by the builder's `pool_size`.
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
    Other(Arc<dyn Lends<C>>),
}

/// A connection of a database that this crate knows, with deadpool's types for it, whose bounds can't be said in general.
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
    /// When it was opened.
    #[doc(hidden)]
    fn made(object: &Self::Object) -> Instant;
    /// A pool that has nothing to lend but `why`.
    #[doc(hidden)]
    fn none(why: &'static str) -> Self::Deadpool;
}

/// A pool of another kind.
trait Lends<C>: Send + Sync {
    fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Loan<C>>, String>>;
}

/// A connection that goes back to its pool when it is dropped, unless it is marked as broken.
pub(crate) trait Loan<C>: DerefMut<Target = C> + Send {}

impl<C, P: DerefMut<Target = C> + Send> Loan<C> for P {}

impl<C: PoolConnection> DieselPool<C> {
    pub(crate) async fn lend(&self) -> Result<Pooled<C>, String> {
        match &self.0 {
            Kind::Deadpool(pool) => C::lend(pool).await.map(Pooled::Deadpool),
            Kind::Other(pool) => pool.lend().await.map(Pooled::Other),
        }
    }

    /// How many connections it has at most, if it tells.
    pub(crate) fn size(&self) -> Option<usize> {
        match &self.0 {
            Kind::Deadpool(pool) => Some(C::size(pool)),
            Kind::Other(_) => None,
        }
    }

    /// The pool itself, if it is deadpool's; otherwise one that says that it is not.
    pub(crate) fn deadpool(&self) -> C::Deadpool {
        match &self.0 {
            Kind::Deadpool(pool) => pool.clone(),
            Kind::Other(_) => {
                C::none("this backend is on a pool of the application's that is not deadpool's: use that")
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

            fn none(why: &'static str) -> Self::Deadpool {
                let mut config = ManagerConfig::default();
                config.recycling_method = RecyclingMethod::Fast;
                config.custom_setup =
                    Box::new(move |_| ready(Err(diesel::ConnectionError::BadConnection(why.to_owned()))).boxed());
                let manager = AsyncDieselConnectionManager::<Self>::new_with_config("", config);
                // The only error is a time-out without a runtime, and there is none.
                deadpools::Pool::builder(manager).build().expect("a pool without time-outs")
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
            fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Loan<$connection>>, String>> {
                async {
                    let lent = self.$get().await.map_err(|error| error.to_string())?;
                    let lent: Box<dyn Loan<$connection>> = Box::new(lent);
                    Ok(lent)
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
    Other(Box<dyn Loan<C>>),
}

impl<C: PoolConnection> Pooled<C> {
    /// When it was opened, by which it is told from the others of its pool; only deadpool tells.
    #[cfg(feature = "mysql")]
    pub(crate) fn made(&self) -> Option<Instant> {
        match self {
            Self::Deadpool(connection) => Some(C::made(connection)),
            Self::Other(_) => None,
        }
    }

    /// Takes it out of its pool for good.
    pub(crate) fn take(self) -> Taken<C> {
        match self {
            Self::Deadpool(connection) => Taken::Own(C::take(connection)),
            Self::Other(connection) => Taken::Other(connection),
        }
    }
}

/// A connection that was taken out of its pool: it is closed when it is dropped.
pub(crate) enum Taken<C: PoolConnection> {
    Own(C),
    /// It keeps its place in the pool until then.
    Other(Box<dyn Loan<C>>),
}

impl<C: PoolConnection> Drop for Taken<C> {
    fn drop(&mut self) {
        if let Self::Other(connection) = self {
            // A pool closes what comes back broken.
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

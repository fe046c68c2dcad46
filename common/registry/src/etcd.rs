//! The registry of a cluster: etcd.
//!
//! Under `/stoker/v1/` stand `runners/{name}`, each with a lease, and `functions/{app}/{function}` with its earlier revisions below,
//! `apps/{app}`, and `places/{app}/{function}/{balancer}`, with leases too, as JSON that `etcdctl get --prefix /stoker/v1/` shows. Readers have a [`view`] of each table, begun when somebody first asks for it; a runner has a
//! [`registration`]; [`functions`] are changed in transactions. All of them reach etcd by a [`link`], and all of them outlive its absence: what
//! was seen last stays, what is to be written is written when it returns, and nobody who serves calls waits for it.

mod apps;
mod figures;
mod functions;
mod link;
mod places;
mod record;
mod registration;
mod tls;
mod view;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use stoker_core::capacity::Capacity;
use stoker_core::function::FunctionName;
use stoker_core::moment::now_ms;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::apps::{App, Apps};
use crate::revisions::{Change, Outcome, Proposal};
use crate::{Claims, Error, Fleet, Functions, Places, Registration, Registry};
pub use figures::{Figures, Part};
use functions::Changed;
use link::{Link, Trouble};
use places::EtcdPlaces;
use registration::EtcdRegistration;
pub use tls::Tls;
use view::{Table, View};

/// Where etcd is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its members, `http://host:port`, or `https://` where there is [`Config::tls`].
    pub endpoints: Vec<String>,
    /// Who we are, where etcd asks for a password.
    pub user: Option<User>,
    /// Keys and certificates.
    pub tls: Option<Tls>,
    /// A runner that died is taken out after this time, up to half a second later. etcd may grant more than is asked, in whole seconds.
    pub lease: Duration,
    /// For every single request.
    pub deadline: Duration,
}

/// A user of etcd.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

/// Without the password.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Config {
    /// etcd at these endpoints, everything else at its default.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            user: None,
            tls: None,
            lease: Duration::from_secs(10),
            deadline: Duration::from_secs(2),
        }
    }
}

/// See the module. Its tasks end when it is dropped; registrations are independent of it.
pub struct EtcdRegistry {
    link: Arc<Link>,
    lease: Duration,
    fleet: OnceLock<Arc<View<Fleet>>>,
    functions: OnceLock<Arc<View<Functions>>>,
    apps: OnceLock<Arc<View<Apps>>>,
    claims: OnceLock<Arc<View<Claims>>>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl EtcdRegistry {
    /// A registry on etcd. It need not be there yet: this checks what `config` says and connects to nothing.
    ///
    /// # Errors
    /// [`Error::Config`], with everything that is wrong.
    pub fn connect(config: Config) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        if config.endpoints.is_empty() {
            wrong.push("there is no endpoint: write http://host:2379".to_owned());
        }
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        wrong.extend(config.endpoints.iter().filter_map(|endpoint| check_endpoint(endpoint, scheme).err()));
        if let Some(Err(why)) = config.tls.as_ref().map(Tls::check) {
            wrong.push(why);
        }
        if config.lease < Duration::from_secs(1) {
            wrong.push(format!("a lease of {:?} is too short: etcd counts whole seconds", config.lease));
        }
        if config.deadline.is_zero() {
            wrong.push("the deadline is zero: no request could be answered".to_owned());
        }
        if !wrong.is_empty() {
            return Err(Error::Config(wrong.join("; ")));
        }
        let stop = CancellationToken::new();
        Ok(Self {
            link: Arc::new(Link::new(&config)),
            lease: config.lease,
            fleet: OnceLock::new(),
            functions: OnceLock::new(),
            apps: OnceLock::new(),
            claims: OnceLock::new(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// How things stand with etcd, for as long as somebody looks.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        self.link.figures.clone()
    }

    fn view<'a, T: Table>(&self, view: &'a OnceLock<Arc<View<T>>>) -> &'a Arc<View<T>> {
        view.get_or_init(|| {
            let view = Arc::new(View::default());
            tokio::spawn(view.clone().follow(self.link.clone(), self.stop.clone()));
            view
        })
    }

    /// Waits until a change can be seen here: whoever made it may look at once.
    async fn seen<T>(&self, change: Changed<T>) -> Result<T, Error> {
        self.reaches(self.view(&self.functions), change).await
    }

    async fn reaches<V: Table, T>(&self, view: &View<V>, change: Changed<T>) -> Result<T, Error> {
        let limit = self.link.patience();
        match tokio::time::timeout(limit, view.reaches(change.revision)).await {
            Ok(()) => Ok(change.what),
            Err(_) => Err(self.link.error("seeing a change that is made", &Trouble::Silent(limit))),
        }
    }
}

fn check_endpoint(endpoint: &str, scheme: &str) -> Result<(), String> {
    if endpoint.contains('@') {
        return Err("an endpoint has a user in it: name the user by `etcd_user`".to_owned());
    }
    let is_not = |why: String| format!("`{endpoint}` is not an endpoint: {why}");
    let uri: tonic::transport::Uri = endpoint.parse().map_err(|e| is_not(format!("{e}")))?;
    match (uri.scheme_str(), uri.host()) {
        (Some(found), Some(_)) if found == scheme => Ok(()),
        (Some("https"), Some(_)) => {
            Err(is_not("https needs the certificate of etcd's authority (`etcd_ca`)".to_owned()))
        }
        _ => Err(is_not(format!("write {scheme}://host:port"))),
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn register(&self, record: Capacity) -> Result<Box<dyn Registration>, Error> {
        Ok(Box::new(EtcdRegistration::start(self.link.clone(), self.lease, record).await?))
    }

    fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.view(&self.fleet).subscribe()
    }

    fn functions(&self) -> watch::Receiver<Arc<Functions>> {
        self.view(&self.functions).subscribe()
    }

    async fn apply(&self, proposals: Vec<Proposal>) -> Result<Vec<Outcome>, Error> {
        let names: Vec<_> = proposals.iter().map(|proposal| proposal.spec.name.clone()).collect();
        let apply = |functions: &mut Functions| functions.apply(proposals.clone(), now_ms());
        self.seen(functions::change(&self.link, "saving functions", &names, apply).await?).await
    }

    async fn change_function(&self, name: &FunctionName, change: Change) -> Result<(), Error> {
        let apply = |functions: &mut Functions| functions.change(name, change.clone());
        let names = std::slice::from_ref(name);
        self.seen(functions::change(&self.link, "changing a function", names, apply).await?).await
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, Error> {
        let change = functions::delete(&self.link, name).await?;
        self.seen(change).await
    }

    fn apps(&self) -> watch::Receiver<Arc<Apps>> {
        self.view(&self.apps).subscribe()
    }

    fn places(&self, holder: &str) -> Arc<dyn Places> {
        let claims = self.view(&self.claims).subscribe();
        Arc::new(EtcdPlaces::start(self.link.clone(), claims, self.lease, holder))
    }

    async fn put_app(&self, name: &str, app: App) -> Result<(), Error> {
        let change = apps::put(&self.link, name, &app).await?;
        self.reaches(self.view(&self.apps), change).await
    }

    async fn delete_app(&self, name: &str) -> Result<bool, Error> {
        let change = apps::delete(&self.link, name).await?;
        self.reaches(self.view(&self.apps), change).await
    }
}

//! Revisions of functions, for operators: what there is, and where calls go.

use std::time::{Duration, UNIX_EPOCH};

use stoker_core::error::{Code, Error};
use stoker_core::function::FunctionName;
use stoker_proto::{convert, v1};
use stoker_registry::Functions;
use stoker_registry::revisions::{Change, Revision, Split};
use tonic::Status;

use super::{Operators, fail, store};

/// A split for the wire.
pub fn split(split: Split) -> v1::Split {
    let (other, other_weight) = split.other.unwrap_or_default();
    v1::Split { main: split.main, other, other_weight }
}

/// Where calls of a function go now.
pub fn traffic(functions: &Functions, name: &FunctionName) -> Option<v1::Split> {
    functions.traffic(name).map(split)
}

fn revision(revision: &Revision) -> v1::Revision {
    let created = Duration::from_millis(revision.created_ms);
    v1::Revision {
        number: revision.number,
        digest: revision.spec.digest().to_string(),
        created: (revision.created_ms > 0).then(|| (UNIX_EPOCH + created).into()),
        published: revision.published,
        function: Some(convert::to_function(&revision.spec)),
    }
}

impl Operators {
    pub(super) fn revisions(&self, function: &str) -> Result<v1::ListRevisionsResponse, Status> {
        let name = self.name(function)?;
        let functions = self.0.directory.functions();
        let release = functions.releases.get(&name);
        let aliases = release.into_iter().flat_map(|release| &release.aliases);
        Ok(v1::ListRevisionsResponse {
            revisions: functions.revisions(&name).map(|known| revision(known)).collect(),
            traffic: traffic(&functions, &name),
            aliases: aliases
                .map(|(name, alias)| v1::Alias {
                    name: name.clone(),
                    split: Some(split(alias.split)),
                    description: alias.description.clone(),
                })
                .collect(),
        })
    }

    pub(super) async fn rollout(
        &self,
        request: v1::RolloutFunctionRequest,
    ) -> Result<v1::RolloutFunctionResponse, Status> {
        let name = self.name(&request.function)?;
        let traffic = self.change(&name, Change::Rollout(request.weight)).await?;
        Ok(v1::RolloutFunctionResponse { traffic })
    }

    pub(super) async fn rollback(
        &self,
        request: v1::RollbackFunctionRequest,
    ) -> Result<v1::RollbackFunctionResponse, Status> {
        let name = self.name(&request.function)?;
        // Said by its number, so that what is done twice on the way to the registry goes back once.
        let to = match request.revision {
            0 => self.0.directory.functions().before_now(&name).map_err(|error| store(&error))?,
            revision => revision,
        };
        let traffic = self.change(&name, Change::Rollback(to)).await?;
        Ok(v1::RollbackFunctionResponse { traffic })
    }

    pub(super) async fn set_alias_of(&self, request: v1::SetAliasRequest) -> Result<(), Status> {
        let name = self.name(&request.function)?;
        let alias = request.alias.unwrap_or_default();
        let Some(asked) = alias.split else {
            return Err(fail(&Error::new(Code::InvalidRequest, "alias.split: says where the alias leads")));
        };
        let split =
            Split { main: asked.main, other: (asked.other > 0).then_some((asked.other, asked.other_weight)) };
        let change =
            Change::SetAlias { name: alias.name, split, description: alias.description, expect: None };
        self.change(&name, change).await.map(drop)
    }

    pub(super) async fn delete_alias_of(&self, request: v1::DeleteAliasRequest) -> Result<(), Status> {
        let name = self.name(&request.function)?;
        self.change(&name, Change::DeleteAlias(request.alias)).await.map(drop)
    }

    /// The function that `text` names, as a whole and not one revision of it.
    pub(super) fn name(&self, text: &str) -> Result<FunctionName, Status> {
        if text.contains(':') {
            let text = "function: write app/function, or the function's id, without a revision";
            return Err(fail(&Error::new(Code::InvalidRequest, text)));
        }
        Ok(self.find(text)?.spec.name.clone())
    }

    async fn change(&self, name: &FunctionName, change: Change) -> Result<Option<v1::Split>, Status> {
        tracing::info!(function = %name, ?change, "an operator changes where calls go");
        self.0.registry.change_function(name, change).await.map_err(|error| store(&error))?;
        Ok(traffic(&self.0.directory.functions(), name))
    }
}

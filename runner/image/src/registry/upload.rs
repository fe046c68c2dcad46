//! Putting blobs and manifests into a repository.
//!
//! A blob is sent in parts, each a request of its own: what lies between takes requests of some size only, and nothing large is in memory as a
//! whole. An upload that breaks is begun anew, unless the blob turns out to be there: registries differ in what they remember of a half one.

use ::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use ::http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::future::join;
use tokio::sync::mpsc;

use super::{Origin, Piece, Request, RequestError, Session, backoff, http};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Fault, Result};

/// Bytes of one part of an upload. Those who keep parts want 5 MiB at least.
const PART: usize = 8 << 20;

/// Bytes of an answer that says nothing that we need: read, so that its connection can be used again.
const ANSWER: u64 = 64 << 10;

const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// What is put into a repository, and where it comes from.
pub(crate) enum Blob<'a> {
    Here(Bytes),
    /// In another repository, maybe of another registry.
    In {
        session: &'a Session,
        digest: Digest,
        size: u64,
    },
}

impl Blob<'_> {
    fn digest(&self) -> Digest {
        match self {
            Blob::Here(bytes) => Digest::of(bytes),
            Blob::In { digest, .. } => *digest,
        }
    }

    /// Gives its bytes, in order.
    async fn read(&self, to: mpsc::Sender<Piece>) -> Result<()> {
        match self {
            Blob::Here(bytes) => {
                // Whoever does not take it has told why.
                to.send(Piece::Data(bytes.clone())).await.unwrap_or_default();
                to.send(Piece::End).await.unwrap_or_default();
                Ok(())
            }
            Blob::In { session, digest, size } => session.blob(*digest, *size, to).await,
        }
    }
}

/// Where the next part of an upload goes to.
struct Upload {
    at: Origin,
    path: String,
    sent: u64,
}

impl Session {
    /// Whether the repository has this blob.
    async fn has(&self, digest: Digest) -> Result<bool> {
        let path = self.path("blobs", &digest.to_string());
        match self.ask(Method::HEAD, &path, "application/octet-stream", None).await {
            Ok(_) => Ok(true),
            Err(error) if error.fault == Fault::Missing => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts a blob there, if it is not there yet.
    pub async fn put(&self, blob: &Blob<'_>) -> Result<()> {
        let digest = blob.digest();
        let mut waits = backoff();
        while !self.has(digest).await? {
            match self.upload(blob, digest).await {
                Ok(()) => return Ok(()),
                Err(trouble) => self.again(&mut waits, trouble).await?,
            }
        }
        Ok(())
    }

    /// Puts a manifest there, under this tag.
    pub async fn put_manifest(&self, tag: &str, manifest: Bytes) -> Result<()> {
        let mut waits = backoff();
        loop {
            let headers =
                HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(document::MANIFEST))]);
            let (path, body) = (self.path("manifests", tag), manifest.clone());
            let request = Request { method: Method::PUT, path, headers, body };
            match self.request(self.origin.clone(), request).await {
                Ok(_) => return Ok(()),
                Err(trouble) => self.again(&mut waits, trouble).await?,
            }
        }
    }

    async fn upload(&self, blob: &Blob<'_>, digest: Digest) -> std::result::Result<(), RequestError> {
        let from = match blob {
            Blob::In { session, .. } if session.origin == self.origin => Some(session.repository.as_str()),
            _ => None,
        };
        let Some(upload) = self.begin(digest, from).await? else { return Ok(()) };
        let (to, pieces) = mpsc::channel(1);
        let (read, written) = join(blob.read(to), self.write(upload, pieces, digest)).await;
        // Who wrote no further let the reader stop without an error; a reader that failed is why there was no more to write.
        read.map_err(RequestError::Final)?;
        written
    }

    /// Begins an upload, unless the registry takes the blob from another of its repositories.
    async fn begin(
        &self,
        digest: Digest,
        from: Option<&str>,
    ) -> std::result::Result<Option<Upload>, RequestError> {
        let asked = from.map(|from| format!("?mount={digest}&from={from}")).unwrap_or_default();
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        let path = format!("/v2/{}/blobs/uploads/{asked}", self.repository);
        let request = Request { method: Method::POST, path, headers, body: Bytes::new() };
        let (at, answer) = self.request(self.origin.clone(), request).await?;
        if answer.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let (at, path) = self.registry.http.follow(&at, answer.headers().get(LOCATION))?;
        http::whole(answer.into_body(), ANSWER).await?;
        Ok(Some(Upload { at, path, sent: 0 }))
    }

    async fn write(
        &self,
        mut upload: Upload,
        mut pieces: mpsc::Receiver<Piece>,
        digest: Digest,
    ) -> std::result::Result<(), RequestError> {
        let mut part = BytesMut::new();
        loop {
            match pieces.recv().await {
                Some(Piece::Data(data)) => part.extend_from_slice(&data),
                Some(Piece::End) => break,
                None => {
                    return Err(RequestError::Passing(
                        Error::registry("a layer was cut off on its way"),
                        None,
                    ));
                }
            }
            while part.len() > PART {
                let full = part.split_to(PART).freeze();
                upload = self.part(upload, full).await?;
            }
        }
        let joint = if upload.path.contains('?') { '&' } else { '?' };
        upload.path = format!("{}{joint}digest={digest}", upload.path);
        self.send_part(Method::PUT, upload, part.freeze()).await?;
        Ok(())
    }

    async fn part(&self, upload: Upload, bytes: Bytes) -> std::result::Result<Upload, RequestError> {
        let sent = upload.sent + bytes.len() as u64;
        let (at, answer) = self.send_part(Method::PATCH, upload, bytes).await?;
        let (at, path) = self.registry.http.follow(&at, answer.headers().get(LOCATION))?;
        http::whole(answer.into_body(), ANSWER).await?;
        Ok(Upload { at, path, sent })
    }

    async fn send_part(
        &self,
        method: Method,
        upload: Upload,
        body: Bytes,
    ) -> std::result::Result<(Origin, ::http::Response<hyper::body::Incoming>), RequestError> {
        let mut headers = HeaderMap::from_iter([
            (ACCEPT, HeaderValue::from_static("*/*")),
            (CONTENT_TYPE, BYTES),
            (CONTENT_LENGTH, HeaderValue::from(body.len())),
        ]);
        if !body.is_empty() {
            let range = format!("{}-{}", upload.sent, upload.sent + body.len() as u64 - 1);
            headers.extend(HeaderValue::from_str(&range).ok().map(|range| (CONTENT_RANGE, range)));
        }
        let request = Request { method, path: upload.path, headers, body };
        self.request(upload.at, request).await.map_err(|trouble| match trouble {
            // It has forgotten what was begun.
            RequestError::Final(error) if error.fault == Fault::Missing => {
                RequestError::Passing(Error::registry(format!("{} forgot an upload", self.origin)), None)
            }
            trouble => trouble,
        })
    }
}

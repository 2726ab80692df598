//! After an opt-out nothing of what was withdrawn comes back over any call of any service, nor in what is logged.

mod requests;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use prost::bytes::{Buf, BufMut};
use silo_log::KeyFile;
use silo_proto::v1;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::access::methods;
use super::service::{Service, start_signed};
use requests::requests;

/// Words that no other text has. The first is also in the URI, the second in the title.
const MARKS: [&str; 3] = ["qzvexlot", "wumbrikk", "ofnaxtri"];

fn text() -> String {
    let [a, b, c] = MARKS;
    format!(
        "The tale of {a} and {b} begins where {c} ends, and nobody but {a} knows why {b} wept when {c} sang to the {a}."
    )
}

/// Takes messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; from.remaining()];
        from.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Everything that a call answers, its error too, as bytes.
async fn answer(channel: &Channel, method: &str, messages: Vec<Vec<u8>>) -> Vec<u8> {
    let failed = |status: &Status| [status.message().as_bytes(), status.details()].concat();
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    let mut stream = match grpc.streaming(Request::new(tokio_stream::iter(messages)), path, Raw).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return failed(&status),
    };
    let mut out = Vec::new();
    // Health is watched for ever: its first word is enough.
    while let Some(item) = stream.next().await {
        let bytes = item.unwrap_or_else(|status| failed(&status));
        // A word may come in pieces.
        let token = v1::GenerateChunk::decode(&bytes[..]).ok().and_then(|chunk| chunk.message);
        match token {
            Some(v1::generate_chunk::Message::Token(token)) if method.ends_with("Stream") => {
                out.extend(token.text.bytes())
            }
            _ => out.extend(bytes),
        }
        if method.ends_with("/Watch") {
            break;
        }
    }
    out
}

/// Places where a text may be said in a message: as it is, and in hexadecimal.
fn says(bytes: &[u8], word: &str) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    text.contains(word) || text.contains(&word.bytes().map(|b| format!("{b:02x}")).collect::<String>())
}

/// What the calls are made with.
struct Asked {
    shard: u64,
    optout: u64,
    removal: u64,
    operation: String,
    response: String,
}

/// What all tests of this program log, from here on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> Log {
    let log = Log::default();
    let writer = log.clone();
    let builder = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let subscriber = builder.with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).expect("no other test sets one");
    log
}

/// The methods of which the answer says a marked word, of all or of some that change nothing.
async fn saying(service: &Service, asked: &Asked, some: Option<&[&str]>) -> Vec<String> {
    let requests = requests(asked);
    let mut out = Vec::new();
    let chosen = |method: &String| some.is_none_or(|some| some.iter().any(|name| method.ends_with(name)));
    for method in methods().into_iter().filter(chosen) {
        let Some(messages) = requests.get(&method[..]) else { panic!("{method} is not asked") };
        let bytes = answer(&service.channel, &method, messages.clone()).await;
        if MARKS.iter().any(|mark| says(&bytes, mark)) {
            out.push(method.split('/').next_back().unwrap_or_default().to_owned());
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_opt_out_no_call_says_anything_of_it() {
    let log = log();
    let mut service = start_signed(|path| drop(KeyFile::create(path, "example.org/silo").unwrap())).await;
    service.add("other", &["The cat sat on the mat and thought of fish, as cats do."]).await;
    let [uri, title, _] = MARKS;
    let document =
        v1::Document { uri: format!("pkg:{uri}/1"), title: title.into(), text: text(), ..Default::default() };
    let shard = service.add_documents("gone", vec![document]).await;
    let mut optouts = service.optouts();
    let why = Some(v1::Why { reason: v1::ReasonCode::Privacy.into(), note: "asked for".into() });
    let request = v1::SubmitOptOutRequest {
        selection: Some(v1::submit_opt_out_request::Selection::Passage(text())),
        claimant: "A. Author".into(),
        why: why.clone(),
        ..Default::default()
    };
    // An answer that is kept.
    let answer = service.generation.generate(requests::copying()).await.unwrap().into_inner();
    let response = answer.finished.unwrap().response_id;
    let operation = "operations/0".into();
    let before = Asked { shard: shard.id, optout: 1, removal: 1, operation, response: response.clone() };
    // Before, the calls that show text do show it: the test would notice.
    let show = [
        "/Generate",
        "/GenerateStream",
        "/Search",
        "/SubmitOptOut",
        "/AttributeResponse",
        "/AttributeText",
        "/CompareWithout",
    ];
    assert_eq!(saying(&service, &before, Some(&show)).await.len(), show.len());
    let optout = optouts.submit_opt_out(request).await.unwrap().into_inner().opt_out.unwrap().id;
    let uphold = v1::decide_opt_out_request::Verdict::Uphold.into();
    let decision = v1::DecideOptOutRequest { id: optout, verdict: uphold, why, spare: Vec::new() };
    let change = optouts.decide_opt_out(decision).await.unwrap().into_inner().change.unwrap();
    let _: v1::PurgeResponse = service.finish(change.purge_operation.clone()).await.unwrap();
    let asked = Asked { shard: shard.id, optout, removal: change.id, operation: change.purge_operation, response };
    assert_eq!(saying(&service, &asked, None).await, Vec::<String>::new());
    let state = optouts.get_opt_out(v1::GetOptOutRequest { id: optout, with_statement: false }).await.unwrap();
    assert!(
        state.into_inner().opt_out.unwrap().events.len() >= 4,
        "GetReceipt made it proven, an appeal was among the calls"
    );
    let logged = log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(String::from_utf8_lossy(&logged).contains("opt-out"), "something is logged");
    assert!(MARKS.iter().all(|mark| !says(&logged, mark)), "a text is in the log");
}

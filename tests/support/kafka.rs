//! A private Kafka broker: one node, made and started for the tests that need it, stopped with the last of them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers};
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;
use vecsync::event::Record;

use super::process::{free_port, signal, wait_for_exit, wait_until};

const START: Duration = Duration::from_secs(180);
const STOP: Duration = Duration::from_secs(60);
/// How long a question to it may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Kafka {
    pub port: u16,
    folder: TempDir,
    server: Option<Child>,
}

/// One record of a topic, as a reader of committed records gets it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub partition: i32,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// As vecsync's own rooms have it.
    pub fn record(&self) -> Record {
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let (key, value) = (self.key.clone().into(), self.value.clone().map(Into::into));
        Record { key, value, headers, timestamp_ms: 0 }
    }
}

/// What a broker has that others have not.
#[derive(Default)]
pub struct Special {
    /// Where its log is; nothing: in its folder.
    pub data: Option<PathBuf>,
    /// More listeners, such as `,SASL_SSL://127.0.0.1:9093`. What they are called is what they do.
    pub listeners: String,
    /// More lines of its settings.
    pub properties: String,
    /// More arguments for the making of its folder.
    pub format: Vec<String>,
}

impl Kafka {
    /// A broker that tests share. They keep apart by `VECSYNC_TOPIC_PREFIX`.
    pub fn shared() -> Arc<Kafka> {
        static SHARED: Mutex<Weak<Kafka>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(kafka) = shared.upgrade() {
            return kafka;
        }
        let kafka = Arc::new(Kafka::start());
        *shared = Arc::downgrade(&kafka);
        kafka
    }

    /// A broker of one's own, to be harmed.
    pub fn start() -> Kafka {
        Kafka::start_with(Special::default())
    }

    pub fn start_with(special: Special) -> Kafka {
        let folder = tempfile::Builder::new().prefix("vecsync-kafka-").tempdir().expect("make a folder");
        let (port, controller, more) = (free_port(), free_port(), special.listeners);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{more}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{more}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,\
             SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL\n\
             log.dirs={}\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n\
             log.cleaner.backoff.ms=500\n\
             auto.create.topics.enable=false\n\
             {}\n",
            special.data.unwrap_or_else(|| folder.path().join("data")).display(),
            special.properties
        );
        fs::write(folder.path().join("server.properties"), properties).expect("write the broker's settings");
        let mut kafka = Kafka { port, folder, server: None };
        let mut format = vec!["format", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", "server.properties"];
        format.extend(special.format.iter().map(String::as_str));
        let formatted = kafka.java("kafka.tools.StorageTool", &format).status().expect("start java");
        assert!(formatted.success(), "the broker's folder could not be made: {}", kafka.log());
        kafka.launch();
        kafka
    }

    /// Starts it again, and waits until it answers.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "Kafka runs already");
        self.server = Some(self.java("kafka.Kafka", &["server.properties"]).spawn().expect("start java"));
        wait_until("Kafka to answer", START, || {
            let server = self.server.as_mut().expect("it was started");
            if let Some(status) = server.try_wait().expect("ask for the process") {
                panic!("Kafka ended with {status}: {}", self.log());
            }
            let asked = self.consumer().fetch_metadata(None, Duration::from_secs(1));
            asked.map_err(|error| error.to_string()).and_then(|metadata| match metadata.brokers() {
                [] => Err("no broker yet".to_owned()),
                _ => Ok(()),
            })
        });
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// What a crash leaves behind.
    pub fn crash(&mut self) {
        self.end("KILL");
    }

    /// Stops it where it stands (`STOP`), lets it go on (`CONT`).
    pub fn signal(&self, name: &str) {
        signal(self.server.as_ref().expect("it was started"), name);
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&mut self, limit: Duration) {
        let mut server = self.server.take().expect("it was started");
        wait_for_exit(&mut server, limit);
    }

    fn end(&mut self, name: &str) {
        if let Some(mut server) = self.server.take() {
            signal(&server, name);
            wait_for_exit(&mut server, STOP);
        }
    }

    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs one of Kafka's own tools, such as `org.apache.kafka.tools.TopicCommand`.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let brokers = self.brokers();
        let arguments: Vec<&str> =
            ["--bootstrap-server", &brokers].into_iter().chain(arguments.iter().copied()).collect();
        let status = self.java(class, &arguments).status().expect("start java");
        assert!(status.success(), "{class} {arguments:?}: {}", self.log());
    }

    fn java(&self, class: &str, arguments: &[&str]) -> Command {
        let fetched = std::env::var_os("VECSYNC_TEST_KAFKA").expect("VECSYNC_TEST_KAFKA is not set: use `make test`");
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("open Kafka's log");
        let mut command = Command::new("java");
        command
            .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(PathBuf::from(fetched).join("*"))
            .arg(class)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one more handle"))
            .stderr(log);
        command
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("kafka.log")
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("group.id", "tests")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "false")
            .set("log_level", "0")
            .create()
            .expect("a consumer")
    }

    /// Writes a record that is none of vecsync's.
    pub fn write(&self, topic: &str, partition: i32, key: &[u8], value: &[u8]) {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("message.max.bytes", "16000000")
            .set("message.timeout.ms", "10000")
            .set("log_level", "0")
            .create()
            .expect("a producer");
        let record = FutureRecord::<[u8], [u8]>::to(topic).partition(partition).key(key).payload(value);
        let delivered = producer.send_result(record).map_err(|(error, _)| error).expect("it is taken");
        producer.flush(PATIENCE).expect("it is sent");
        delivered.now_or_never().expect("it was flushed").expect("the producer lives").expect("it is written");
    }

    /// Writes a record in a transaction that nobody ends but the broker, after so long.
    pub fn begin_writing(&self, topic: &str, time_out: Duration) -> BaseProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("transactional.id", format!("{topic}.open"))
            .set("transaction.timeout.ms", time_out.as_millis().to_string())
            .create()
            .expect("a producer");
        producer.init_transactions(PATIENCE).expect("it is let in");
        producer.begin_transaction().expect("begun");
        let record = BaseRecord::<str, str>::to(topic).partition(0).key("{\"id\":0}").payload("{}");
        producer.send(record).map_err(|(error, _)| error).expect("it is taken");
        producer.flush(PATIENCE).expect("it is written");
        producer
    }

    /// Writes a record as any producer of Kafka's own would, into the partition of its key.
    pub fn write_keyed(&self, topic: &str, key: &str, value: &str) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("partitioner", "murmur2_random")
            .create()
            .expect("a producer");
        producer.send(BaseRecord::to(topic).key(key).payload(value)).map_err(|(error, _)| error).expect("sent");
        producer.flush(PATIENCE).expect("written");
    }

    /// Every committed record of a topic, partition by partition.
    pub fn read(&self, topic: &str) -> Vec<Entry> {
        let consumer = self.consumer();
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("ask for the topic");
        let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
        let mut entries = vec![];
        for partition in partitions {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
            consumer.assign(&list).expect("assigned");
            loop {
                match consumer.poll(PATIENCE).expect("Kafka answers") {
                    Ok(message) => entries.push(Entry {
                        partition,
                        offset: message.offset(),
                        key: message.key().unwrap_or_default().to_vec(),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: headers(&message),
                    }),
                    Err(KafkaError::PartitionEOF(_)) => break,
                    Err(error) => panic!("read {topic}: {error}"),
                }
            }
        }
        entries
    }
}

fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, Vec<u8>)> {
    let all = message.headers().into_iter().flat_map(BorrowedHeaders::iter);
    all.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

//! The one question that rdkafka has no safe call for: a topic's id (and what we may do with it).
//!
//! Everything unsafe of this crate is here. Pointers that librdkafka hands out are owned by the event, which lives until the
//! end of the function; what is returned is copied.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::reports::Context;

/// A topic as the brokers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// Changes when the topic is deleted and created again; absent before Kafka 2.8.
    pub(crate) topic_id: Option<String>,
    pub(crate) partitions: i32,
    /// Of the first partition.
    pub(crate) replicas: usize,
    /// What this user may do, where the brokers say so.
    pub(crate) operations: Option<Operations>,
}

/// Rights on the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operations {
    pub(crate) may_read: bool,
    pub(crate) may_write: bool,
}

/// Why there is no description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) words: String,
}

/// Asks the brokers; blocks up to `timeout`, or until `is_hopeless`.
#[expect(unsafe_code, reason = "rdkafka 0.39 has no safe DescribeTopics, the only call that tells a topic's id")]
pub(crate) fn describe_topic(
    client: &Client<Context>,
    topic: &str,
    timeout: Duration,
    is_hopeless: impl Fn() -> bool,
) -> Result<Description, Failure> {
    let name = CString::new(topic).map_err(|error| Failure { code: Code::InvalidTopic, words: error.to_string() })?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut names = [name.as_ptr()];
    // SAFETY: every object made here is destroyed below, once, after its last use; `names` outlives the call that copies it.
    unsafe {
        let client = client.native_ptr();
        let queue = sys::rd_kafka_queue_new(client);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let options =
            sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut text = [0; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), text.len());
        let error = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !error.is_null() {
            sys::rd_kafka_error_destroy(error);
        }
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        // librdkafka answers at its own time limit; the second limit is for the case that it does not.
        let end = Instant::now() + timeout + Duration::from_secs(1);
        let mut event = sys::rd_kafka_queue_poll(queue, 50);
        while event.is_null() && Instant::now() < end && !is_hopeless() {
            event = sys::rd_kafka_queue_poll(queue, 50);
        }
        let answer = if event.is_null() {
            Err(Failure { code: Code::OperationTimedOut, words: "no answer in time".to_owned() })
        } else {
            read_answer(event)
        };
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_queue_destroy(queue);
        answer
    }
}

#[expect(unsafe_code, reason = "reads the answer of DescribeTopics")]
unsafe fn read_answer(event: *mut sys::rd_kafka_event_t) -> Result<Description, Failure> {
    // SAFETY: `event` is live; what its accessors return lives as long as it does, and null is tested for.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Failure { code: code.into(), words: text_of(sys::rd_kafka_event_error_string(event)) });
        }
        let missing = || Failure { code: Code::UnknownTopicOrPartition, words: "no answer about the topic".to_owned() };
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(missing());
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() || count == 0 {
            return Err(missing());
        }
        let topic = *topics;
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code = sys::rd_kafka_error_code(error);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Failure { code: code.into(), words: text_of(sys::rd_kafka_error_string(error)) });
        }
        let mut partition_count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &raw mut partition_count);
        let mut replicas = 0;
        if !partitions.is_null() && partition_count > 0 {
            sys::rd_kafka_TopicPartitionInfo_replicas(*partitions, &raw mut replicas);
        }
        Ok(Description {
            topic_id: topic_id(topic),
            partitions: i32::try_from(partition_count).unwrap_or(i32::MAX),
            replicas,
            operations: operations(topic),
        })
    }
}

#[expect(unsafe_code, reason = "reads the answer of DescribeTopics")]
unsafe fn topic_id(topic: *const sys::rd_kafka_TopicDescription_t) -> Option<String> {
    // SAFETY: as in `read_answer`.
    unsafe {
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let is_zero = id.is_null()
            || (sys::rd_kafka_Uuid_most_significant_bits(id) == 0
                && sys::rd_kafka_Uuid_least_significant_bits(id) == 0);
        (!is_zero).then(|| text_of(sys::rd_kafka_Uuid_base64str(id)))
    }
}

#[expect(unsafe_code, reason = "reads the answer of DescribeTopics")]
unsafe fn operations(topic: *const sys::rd_kafka_TopicDescription_t) -> Option<Operations> {
    // SAFETY: as in `read_answer`; the array has `count` entries.
    unsafe {
        let mut count = 0;
        let list = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        if list.is_null() || count == 0 {
            return None;
        }
        let list = std::slice::from_raw_parts(list, count);
        let may = |operation| {
            list.contains(&operation) || list.contains(&sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ALL)
        };
        Some(Operations {
            may_read: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            may_write: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        })
    }
}

#[expect(unsafe_code, reason = "reads a C string")]
unsafe fn text_of(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's texts end with a null and live as long as their owner.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

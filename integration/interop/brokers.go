package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

const patience = 60 * time.Second

// send publishes messages, as they are, through RabbitMQ's or Kafka's usual client; each is confirmed by its broker.
func send(url string, messages []*message) {
	if strings.HasPrefix(url, "amqp") {
		sendAMQP(url, messages)
	} else {
		sendKafka(url, messages)
	}
}

// receive judges so many messages of a queue or topic, by the consumer on the first line of standard input.
func receive(url, place string, n int) {
	var form consumerForm
	if err := json.Unmarshal(lines()[0], &form); err != nil {
		panic(err)
	}
	c := form.consumer()
	judge := func(m *message) {
		found := c.judge(m, time.Now().Unix())
		for _, taken := range found.taken {
			taken.done = true
		}
		fmt.Println(strings.TrimSpace(found.verdict.verdict + " " + string(found.reason) + found.cause))
	}
	if strings.HasPrefix(url, "amqp") {
		receiveAMQP(url, place, n, judge)
	} else {
		receiveKafka(url, place, "", n, judge)
	}
}

// bury judges so many messages as receive does; of each that is rejected it publishes a letter before it settles it.
func bury(url, place, scope, dead string, n int) {
	var form consumerForm
	if err := json.Unmarshal(lines()[0], &form); err != nil {
		panic(err)
	}
	c := form.consumer()
	judge := func(m *message) {
		found := c.judge(m, time.Now().Unix())
		fmt.Println(strings.TrimSpace(found.verdict.verdict + " " + string(found.reason) + found.cause))
		if found.verdict.verdict != "rejected" {
			return
		}
		l := &letter{
			m: m, scope: scope, reason: string(found.reason), detail: "judged in Go", audit: uuid(),
			millis: time.Now().UnixMilli(),
		}
		made := l.whole()
		if made.destination = rabbitDestination("", dead); m.kafka() {
			made.destination = kafkaDestination(dead)
		}
		send(url, []*message{made})
	}
	if strings.HasPrefix(url, "amqp") {
		receiveAMQP(url, place, n, judge)
	} else {
		receiveKafka(url, place, scope, n, judge)
	}
}

func sendAMQP(url string, messages []*message) {
	connection := must(amqp.Dial(url))
	defer connection.Close()
	channel := must(connection.Channel())
	if err := channel.Confirm(false); err != nil {
		panic(err)
	}
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, m := range messages {
		names, _ := placeNames(m.destination)
		confirmation := must(channel.PublishWithDeferredConfirmWithContext(limit, names[0], names[1], true, false, m.publishing()))
		if !must(confirmation.WaitContext(limit)) {
			panic("not confirmed")
		}
	}
}

func receiveAMQP(url, queue string, n int, judge func(*message)) {
	connection := must(amqp.Dial(url))
	defer connection.Close()
	channel := must(connection.Channel())
	deliveries := must(channel.Consume(queue, "", false, false, false, false, nil))
	for range n {
		select {
		case d := <-deliveries:
			judge(fromDelivery(&d, queue))
			if err := d.Ack(false); err != nil {
				panic(err)
			}
		case <-time.After(patience):
			panic("no message")
		}
	}
}

// publishing is a message as amqp091-go sends it. It cannot tell an empty property from an absent one.
func (m *message) publishing() amqp.Publishing {
	p := m.properties
	found := amqp.Publishing{
		ContentType: p["content-type"], ContentEncoding: p["content-encoding"], Type: p["type"],
		MessageId: p["message-id"], CorrelationId: p["correlation-id"], ReplyTo: p["reply-to"], AppId: p["app-id"],
		Body: m.body, Headers: amqp.Table{}, DeliveryMode: amqp.Persistent,
	}
	if n, err := strconv.ParseUint(p["priority"], 10, 8); err == nil {
		found.Priority = uint8(n)
	}
	for _, header := range m.headers {
		found.Headers[header.name] = toField(header.value)
	}
	return found
}

func fromDelivery(d *amqp.Delivery, queue string) *message {
	properties := map[string]string{
		"content-type": d.ContentType, "content-encoding": d.ContentEncoding, "type": d.Type,
		"message-id": d.MessageId, "correlation-id": d.CorrelationId, "reply-to": d.ReplyTo, "app-id": d.AppId,
		"user-id": d.UserId, "expiration": d.Expiration,
	}
	for name, n := range map[string]int64{"delivery-mode": int64(d.DeliveryMode), "priority": int64(d.Priority)} {
		if n > 0 {
			properties[name] = strconv.FormatInt(n, 10)
		}
	}
	if !d.Timestamp.IsZero() {
		properties["timestamp"] = strconv.FormatInt(d.Timestamp.Unix(), 10)
	}
	for name, text := range properties {
		if text == "" {
			delete(properties, name)
		}
	}
	m := &message{
		destination: rabbitDestination(d.Exchange, d.RoutingKey),
		body:        d.Body, properties: properties,
		origin: &origin{
			queue: queue, exchange: d.Exchange, routingKey: d.RoutingKey, redelivered: d.Redelivered,
			partition: -1, offset: -1, timestampMS: -1,
		},
	}
	if m.body == nil {
		m.body = []byte{}
	}
	for name, value := range d.Headers {
		m.headers = append(m.headers, pair{name, fromField(value)})
	}
	return m
}

// toField is a value as amqp091-go sends it; its own int would be cut to 32 bits.
func toField(value any) any {
	switch v := value.(type) {
	case timestamp:
		return time.Unix(int64(v), 0)
	case []any:
		found := []any{}
		for _, item := range v {
			found = append(found, toField(item))
		}
		return found
	case table:
		found := amqp.Table{}
		for _, field := range v {
			found[field.name] = toField(field.value)
		}
		return found
	}
	return value
}

func fromField(value any) any {
	switch v := value.(type) {
	case int8:
		return int64(v)
	case byte:
		return int64(v)
	case int16:
		return int64(v)
	case int32:
		return int64(v)
	case float32:
		return float64(v)
	case time.Time:
		return timestamp(v.Unix())
	case []any:
		found := []any{}
		for _, item := range v {
			found = append(found, fromField(item))
		}
		return found
	case amqp.Table:
		found := table{}
		for name, item := range v {
			found = append(found, pair{name, fromField(item)})
		}
		return found
	}
	return value
}

func sendKafka(servers string, messages []*message) {
	// kafka-python, which reads it, has no snappy unless that is installed
	client := must(kgo.NewClient(
		kgo.SeedBrokers(strings.Split(servers, ",")...), kgo.ProducerBatchCompression(kgo.NoCompression()),
	))
	defer client.Close()
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, m := range messages {
		names, _ := placeNames(m.destination)
		r := &kgo.Record{Topic: names[0], Key: m.key, Value: m.body}
		for _, header := range m.headers {
			value, _ := header.value.([]byte)
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: header.name, Value: value})
		}
		if err := client.ProduceSync(limit, r).FirstErr(); err != nil {
			panic(err)
		}
	}
}

// receiveKafka reads a topic from its start; of a group it commits what was judged.
func receiveKafka(servers, topic, group string, n int, judge func(*message)) {
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(servers, ",")...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
	if group != "" {
		options = append(options, kgo.ConsumerGroup(group), kgo.DisableAutoCommit())
	}
	client := must(kgo.NewClient(options...))
	defer client.Close()
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for n > 0 {
		fetches := client.PollRecords(limit, n)
		if err := fetches.Err(); err != nil {
			panic(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { judge(fromRecord(r)) })
		if group != "" {
			if err := client.CommitRecords(limit, fetches.Records()...); err != nil {
				panic(err)
			}
		}
		n -= fetches.NumRecords()
	}
}

func fromRecord(r *kgo.Record) *message {
	m := &message{
		destination: kafkaDestination(r.Topic), body: r.Value, key: r.Key, properties: map[string]string{},
		origin: &origin{topic: r.Topic, partition: int64(r.Partition), offset: r.Offset, timestampMS: -1},
	}
	for _, header := range r.Headers {
		var value any
		if header.Value != nil {
			value = header.Value
		}
		m.headers = append(m.headers, pair{header.Key, value})
	}
	return m
}

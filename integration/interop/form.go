package main

import (
	"encoding/base64"
	"errors"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var errForm = errors.New("no message in its JSON form")

var (
	intText     = regexp.MustCompile(`\A(0|-?[1-9][0-9]*)\z`)
	decimalText = regexp.MustCompile(`\A-?[0-9]{1,300}(\.[0-9]{1,300})?\z`)
	timeText    = regexp.MustCompile(`\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\z`)
	amqpNames   = []string{
		"content_type", "content_encoding", "type", "message_id", "correlation_id", "reply_to", "app_id", "user_id",
		"delivery_mode", "priority", "expiration", "timestamp", "cluster_id",
	}
)

func bytesOf(value any) ([]byte, bool) {
	text, ok := value.(string)
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if raw == nil {
		raw = []byte{}
	}
	return raw, ok && err == nil && base64.StdEncoding.EncodeToString(raw) == text
}

// fromForm reads a message in the JSON form (section 9).
func fromForm(raw []byte) (*message, error) {
	found, err := parse(raw, 100, true)
	form, ok := found.(*object)
	if err != nil || !ok || !only(form, "destination", "body", "key", "properties", "headers", "origin") {
		return nil, errForm
	}
	m := &message{properties: map[string]string{}}
	if m.destination, ok = form.members["destination"].(string); !ok {
		return nil, errForm
	}
	names, ok := placeNames(m.destination)
	body, there := form.members["body"]
	if !ok || !there {
		return nil, errForm
	}
	if m.body, ok = optional(body); !ok || m.body == nil && !m.kafka() {
		return nil, errForm
	}
	if m.key, ok = optional(form.members["key"]); !ok || m.key != nil && !m.kafka() {
		return nil, errForm
	}
	properties, isThere := form.members["properties"]
	if isThere && !m.readProperties(properties) {
		return nil, errForm
	}
	if headers, isThere := form.members["headers"]; isThere && !m.readHeaders(headers) {
		return nil, errForm
	}
	if m.origin, ok = readOrigin(form.members["origin"], m.kafka(), names); !ok {
		return nil, errForm
	}
	return m, nil
}

func only(o *object, names ...string) bool {
	return !slices.ContainsFunc(o.names, func(n string) bool { return !slices.Contains(names, n) })
}

func optional(value any) ([]byte, bool) {
	if value == nil {
		return nil, true
	}
	return bytesOf(value)
}

func (m *message) readProperties(value any) bool {
	properties, ok := value.(*object)
	if !ok || !only(properties, amqpNames...) {
		return false
	}
	for _, name := range properties.names {
		text := ""
		switch v := properties.members[name].(type) {
		case nil:
			continue
		case string:
			text = v
		case number:
			if _, whole := v.whole(); !whole {
				return false
			}
			text = string(v)
		default:
			return false
		}
		dashed := strings.ReplaceAll(name, "_", "-")
		if !m.kafka() {
			m.properties[dashed] = text
		} else {
			m.headers = append(m.headers, pair{dashed, []byte(text)})
		}
	}
	return true
}

func (m *message) readHeaders(value any) bool {
	list, ok := value.([]any)
	for _, item := range list {
		two, is := item.([]any)
		if !is || len(two) != 2 {
			return false
		}
		header, is := two[0].(string)
		found, read := tagged(two[1], 32)
		if !is || !read {
			return false
		}
		if m.kafka() {
			if found, read = onKafka(found); !read {
				return false
			}
		} else if m.occurrences(header) != nil {
			return false
		}
		m.headers = append(m.headers, pair{header, found})
	}
	return ok
}

func onKafka(value any) (any, bool) {
	switch v := value.(type) {
	case nil, []byte:
		return v, true
	case string:
		return []byte(v), true
	}
	return nil, false
}

func tagged(value any, deep int) (any, bool) {
	form, ok := value.(*object)
	if !ok || len(form.names) != 1 {
		return nil, false
	}
	inner := form.members[form.names[0]]
	text, isText := inner.(string)
	switch form.names[0] {
	case "str":
		return text, isText
	case "b64":
		return bytesOf2(inner)
	case "null":
		return nil, inner == nil
	case "bool":
		found, ok := inner.(bool)
		return found, ok
	case "int":
		if n, is := inner.(number); is {
			text, isText = string(n), true
			if text == "-0" {
				text = "0"
			}
		}
		found, err := strconv.ParseInt(text, 10, 64)
		return found, isText && err == nil && intText.MatchString(text)
	case "float":
		return floatOf(inner)
	case "time":
		found, err := time.Parse(time.RFC3339, text)
		return timestamp(found.Unix()), isText && err == nil && timeText.MatchString(text) && found.Year() > 0
	case "decimal":
		return decimal(text), isText && decimalText.MatchString(text)
	case "list":
		return listOf(inner, deep)
	case "table":
		return tableOf(inner, deep)
	}
	return nil, false
}

func bytesOf2(value any) (any, bool) {
	raw, ok := bytesOf(value)
	return raw, ok
}

func floatOf(value any) (any, bool) {
	switch v := value.(type) {
	case number:
		found, err := strconv.ParseFloat(string(v), 64)
		return found, err == nil || found == 0
	case string:
		found, ok := map[string]float64{"nan": math.NaN(), "inf": math.Inf(1), "-inf": math.Inf(-1)}[v]
		return found, ok
	}
	return nil, false
}

func listOf(value any, deep int) (any, bool) {
	list, ok := value.([]any)
	found := []any{}
	if !ok || deep == 0 {
		return nil, false
	}
	for _, item := range list {
		inner, read := tagged(item, deep-1)
		if !read {
			return nil, false
		}
		found = append(found, inner)
	}
	return found, true
}

func tableOf(value any, deep int) (any, bool) {
	if deep == 0 {
		return nil, false
	}
	found, seen := table{}, map[string]bool{}
	add := func(name any, form any) bool {
		text, ok := name.(string)
		inner, read := tagged(form, deep-1)
		if !ok || !read || seen[text] {
			return false
		}
		seen[text] = true
		found = append(found, pair{text, inner})
		return true
	}
	switch v := value.(type) {
	case *object:
		for _, name := range v.names {
			if !add(name, v.members[name]) {
				return nil, false
			}
		}
		return found, true
	case []any:
		for _, item := range v {
			two, is := item.([]any)
			if !is || len(two) != 2 || !add(two[0], two[1]) {
				return nil, false
			}
		}
		return found, true
	}
	return nil, false
}

func readOrigin(value any, kafka bool, names []string) (*origin, bool) {
	if value == nil {
		return nil, true
	}
	form, ok := value.(*object)
	known := []string{"scope", "timestamp_ms", "timestamp_type"}
	ofQueue := []string{"queue", "exchange", "routing_key"}
	ofRecord := []string{"cluster", "topic", "topic_id", "partition", "offset"}
	others := ofRecord
	if kafka {
		others = append(ofQueue, "redelivered")
	}
	if !ok || !only(form, slices.Concat(known, ofQueue, ofRecord, []string{"redelivered"})...) {
		return nil, false
	}
	for _, other := range others {
		if member := form.members[other]; member != nil && member != any(false) {
			return nil, false
		}
	}
	o := &origin{partition: -1, offset: -1, timestampMS: -1}
	texts := map[string]*string{
		"scope": &o.scope, "cluster": &o.cluster, "topic": &o.topic, "topic_id": &o.topicID,
		"queue": &o.queue, "exchange": &o.exchange, "routing_key": &o.routingKey,
	}
	numbers := map[string]*int64{"partition": &o.partition, "offset": &o.offset, "timestamp_ms": &o.timestampMS}
	for _, name := range form.names {
		member := form.members[name]
		switch {
		case member == nil:
			continue
		case texts[name] != nil:
			*texts[name], ok = member.(string)
		case numbers[name] != nil:
			*numbers[name], ok = natural(member)
		case name == "redelivered":
			o.redelivered, ok = member.(bool)
		default:
			ok = member == any("append") || member == any("create")
			o.append = member == any("append")
		}
		if !ok {
			return nil, false
		}
	}
	contradicts := func(name, expected string) bool {
		text, there := form.members[name].(string)
		return there && text != expected
	}
	if kafka {
		return o, !contradicts("topic", names[0])
	}
	return o, !contradicts("exchange", names[0]) && !contradicts("routing_key", names[1])
}

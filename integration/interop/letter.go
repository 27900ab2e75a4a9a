package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const dead = "mqauth-dead-"

// live act on a letter itself, or are written on it by the broker; they are metadata of a letter.
var (
	liveProperties = []string{
		"user-id", "expiration", "reply-to", "message-id", "delivery-mode", "cluster-id", "timestamp",
	}
	liveHeaders  = []string{"CC", "BCC", "x-delay", "reply-to", "timestamp_in_ms"}
	onLetters    = []string{"timestamp_in_ms", "x-delivery-count", "x-acquired-count"}
	recordSource = regexp.MustCompile(`\A([^/@]+)/([0-9]+)/([0-9]+)(?:@([^/]*)(?:/(.+))?)?\z`)
)

func brokerWrites(name string) bool {
	for _, prefix := range []string{"x-first-death-", "x-last-death-", "x-stream-", "x-opt-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"x-death", "x-delivery-count", "x-acquired-count"}, name)
}

// letter is a rejected message, and what its dead letter says of it (section 17).
type letter struct {
	m                            *message
	scope, reason, detail, audit string
	failure, rung                *string
	millis, earlier              int64
	hops                         []hop
}

type hop struct {
	Letter string
	Reason *string
	Time   int64
}

func (m *message) source() string {
	o := m.origin
	if o == nil {
		return ""
	}
	if o.topic == "" {
		return o.queue
	}
	found := fmt.Sprintf("%s/%d/%d", o.topic, o.partition, o.offset)
	if o.cluster != "" || o.topicID != "" {
		found += "@" + o.cluster
	}
	if o.topicID != "" {
		found += "/" + o.topicID
	}
	return found
}

// any adds a named value; one that has no encoding counts by its form.
func addAny(out *bytes.Buffer, name string, value any) {
	before := out.Len()
	if named(out, name, []any{value}) == nil {
		return
	}
	out.Truncate(before)
	raw := []byte("[" + quoted(name) + "," + formOf(value) + "]")
	out.WriteByte('?')
	out.Write(sized(raw))
}

func hexSum(raw []byte) string {
	found := sha256.Sum256(raw)
	return hex.EncodeToString(found[:])
}

func orNil(raw []byte) any {
	if raw == nil {
		return nil
	}
	return raw
}

func (m *message) contentDigest() string {
	out := bytes.NewBufferString("mqauth-letter-1")
	addAny(out, "destination", m.destination)
	addAny(out, "key", orNil(m.key))
	addAny(out, "body", orNil(m.body))
	names := []string{}
	for name := range m.properties {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		addAny(out, name, m.properties[name])
	}
	headers := slices.Clone(m.headers)
	slices.SortStableFunc(headers, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	for _, header := range headers {
		if !brokerWrites(header.name) {
			addAny(out, header.name, header.value)
		}
	}
	return hexSum(out.Bytes())
}

func (m *message) letterID(scope string) string {
	out := bytes.NewBufferString("mqauth-letter-id-1")
	addAny(out, "scope", scope)
	addAny(out, "source", m.source())
	addAny(out, "digest", m.contentDigest())
	return hexSum(out.Bytes())
}

func quoted(text string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text)
	return strings.TrimSuffix(out.String(), "\n")
}

// formOf writes a value as section 9 does.
func formOf(value any) string {
	tag := func(name, text string) string { return fmt.Sprintf(`{"%s":%s}`, name, text) }
	switch v := value.(type) {
	case bool:
		return tag("bool", strconv.FormatBool(v))
	case int64:
		if v > 1<<53 || v < -(1<<53) {
			return tag("int", fmt.Sprintf(`"%d"`, v))
		}
		return tag("int", strconv.FormatInt(v, 10))
	case float64:
		switch {
		case v != v:
			return tag("float", `"nan"`)
		case math.IsInf(v, 0):
			return tag("float", map[bool]string{true: `"inf"`, false: `"-inf"`}[v > 0])
		case v == 0 && math.Signbit(v):
			return tag("float", "-0.0")
		}
		return tag("float", string(must(json.Marshal(v))))
	case string:
		return tag("str", quoted(v))
	case []byte:
		return tag("b64", quoted(base64.StdEncoding.EncodeToString(v)))
	case timestamp:
		return tag("time", quoted(time.Unix(int64(v), 0).UTC().Format(time.RFC3339)))
	case decimal:
		return tag("decimal", quoted(string(v)))
	case []any:
		items := []string{}
		for _, item := range v {
			items = append(items, formOf(item))
		}
		return tag("list", "["+strings.Join(items, ",")+"]")
	case table:
		fields := []string{}
		for _, field := range v {
			fields = append(fields, "["+quoted(field.name)+","+formOf(field.value)+"]")
		}
		return tag("table", "["+strings.Join(fields, ",")+"]")
	}
	return tag("null", "null")
}

func pairsOf(headers []pair) string {
	items := []string{}
	for _, header := range headers {
		items = append(items, "["+quoted(header.name)+","+formOf(header.value)+"]")
	}
	return "[" + strings.Join(items, ",") + "]"
}

// form writes a whole message as section 9 does.
func (m *message) form() string {
	octets := func(raw []byte) string {
		if raw == nil {
			return "null"
		}
		return quoted(base64.StdEncoding.EncodeToString(raw))
	}
	members := []string{`"destination":` + quoted(m.destination)}
	if m.kafka() {
		members = append(members, `"key":`+octets(m.key))
	}
	members = append(members, `"body":`+octets(m.body))
	properties := map[string]string{}
	for name, text := range m.properties {
		properties[strings.ReplaceAll(name, "-", "_")] = text
	}
	members = append(members, `"properties":`+string(must(json.Marshal(properties))), `"headers":`+pairsOf(m.headers))
	if o := m.origin; o != nil {
		said := map[string]any{}
		texts := map[string]string{
			"scope": o.scope, "cluster": o.cluster, "topic": o.topic, "topic_id": o.topicID, "queue": o.queue,
			"exchange": o.exchange, "routing_key": o.routingKey,
		}
		for name, text := range texts {
			if text != "" {
				said[name] = text
			}
		}
		for name, n := range map[string]int64{"partition": o.partition, "offset": o.offset} {
			if n >= 0 {
				said[name] = n
			}
		}
		members = append(members, `"origin":`+string(must(json.Marshal(said))))
	}
	return "{" + strings.Join(members, ",") + "}"
}

// own returns the headers that every letter has, as the broker carries text.
func (l *letter) own(metadata string) []pair {
	m, found := l.m, []pair{}
	add := func(name, text string) {
		var value any = text
		if m.kafka() {
			value = []byte(text)
		}
		found = append(found, pair{dead + name, value})
	}
	add("id", m.letterID(l.scope))
	add("reason", l.reason)
	add("detail", l.detail)
	if l.failure != nil {
		add("error", *l.failure)
	}
	add("time", time.UnixMilli(l.millis).UTC().Format("2006-01-02T15:04:05.000Z"))
	add("scope", l.scope)
	add("destination", m.destination)
	add("source", m.source())
	add("audit", l.audit)
	add("digest", m.contentDigest())
	add("count", strconv.FormatInt(l.earlier+1, 10))
	items := []string{}
	for _, one := range l.hops {
		reason := "null"
		if one.Reason != nil {
			reason = quoted(*one.Reason)
		}
		at := time.Unix(one.Time, 0).UTC().Format("2006-01-02T15:04:05.000Z")
		items = append(items, fmt.Sprintf(`{"id":%s,"reason":%s,"released":"%s"}`, quoted(one.Letter), reason, at))
	}
	add("history", "["+strings.Join(items, ",")+"]")
	if l.rung != nil {
		add("rung", *l.rung)
	}
	if m.key != nil && len(m.key) <= 1024 {
		add("key", b64(m.key))
	}
	if metadata != "" {
		add("metadata", metadata)
	}
	return found
}

// whole is the form that keeps body and headers.
func (l *letter) whole() *message {
	m := l.m
	kept, moved, places := []pair{}, []pair{}, []string{}
	stripped, at, tokens := 0, 0, 0
	for _, header := range m.headers {
		folded := fold(header.name)
		first := header.name == "mqauth-token" && tokens == 0
		switch {
		case strings.HasPrefix(folded, dead):
			stripped++
		case slices.Contains(liveHeaders, header.name) || folded == "mqauth-token" && !first:
			moved, places = append(moved, header), append(places, strconv.Itoa(at))
			at++
		default:
			if first {
				header.name, tokens = dead+"token", 1
			}
			kept = append(kept, header)
			if m.kafka() || !slices.Contains(onLetters, header.name) {
				at++
			}
		}
	}
	metadata, properties, live := []string{}, map[string]string{}, map[string]string{}
	for name, text := range m.properties {
		if slices.Contains(liveProperties, name) {
			live[name] = text
		} else {
			properties[name] = text
		}
	}
	if len(moved) > 0 {
		metadata = append(metadata, `"headers":`+pairsOf(moved), `"places":[`+strings.Join(places, ",")+"]")
	}
	if stripped > 0 {
		metadata = append(metadata, fmt.Sprintf(`"stripped":%d`, stripped))
	}
	if len(live) > 0 {
		metadata = append(metadata, `"properties":`+string(must(json.Marshal(live))))
	}
	text := ""
	if len(metadata) > 0 {
		text = "{" + strings.Join(metadata, ",") + "}"
	}
	return &message{
		destination: m.destination, body: m.body, key: m.key, properties: properties,
		headers: append(kept, l.own(text)...),
	}
}

// bare is a form whose body stands for the message.
func (l *letter) bare(form, body string) *message {
	var value any = form
	if l.m.kafka() {
		value = []byte(form)
	}
	return &message{
		destination: l.m.destination, body: []byte(body), key: l.m.key, properties: map[string]string{},
		headers: append(l.own(""), pair{dead + "form", value}),
	}
}

func (l *letter) inBody() *message { return l.bare("json", l.m.form()) }

func (l *letter) reference() *message {
	m := l.m
	size := func(raw []byte) any {
		if raw == nil {
			return nil
		}
		return len(raw)
	}
	found := l.bare("reference", string(must(json.Marshal(map[string]any{
		"destination": m.destination, "source": m.source(), "digest": m.contentDigest(),
		"body_size": size(m.body), "key_size": size(m.key), "headers": len(m.headers),
	}))))
	if len(m.key) > 1024 {
		found.key = nil
	}
	return found
}

func uuid() string {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw)
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

// said returns a letter's own headers as text; of a name that repeats the first counts.
func (m *message) said() map[string]string {
	found := map[string]string{}
	for _, header := range m.headers {
		name, own := strings.CutPrefix(header.name, dead)
		text, is := header.value.(string)
		if raw, bytes := header.value.([]byte); bytes {
			text, is = string(raw), true
		}
		if _, there := found[name]; own && is && !there {
			found[name] = text
		}
	}
	return found
}

// intact tells whether the message in a letter is the one whose id and digest it names.
func intact(l *message) bool {
	said := l.said()
	var m *message
	var ok bool
	switch form, there := said["form"]; {
	case !there:
		m, ok = l.restored(said)
	case form == "json":
		found, err := fromForm(l.body)
		m, ok = found, err == nil
	}
	return ok && m.contentDigest() == said["digest"] && m.letterID(said["scope"]) == said["id"]
}

// restored returns the message in a letter that kept body and headers.
func (l *message) restored(said map[string]string) (*message, bool) {
	names, ok := placeNames(said["destination"])
	metadata := &object{}
	if text, there := said["metadata"]; there && ok {
		found, err := parse([]byte(text), 100, true)
		metadata, ok = found.(*object)
		ok = ok && err == nil
	}
	if !ok || metadata.members["stripped"] != nil {
		return nil, false
	}
	m := &message{destination: said["destination"], body: l.body, key: l.key, properties: map[string]string{}}
	kept := []pair{}
	for _, header := range l.headers {
		switch {
		case header.name == dead+"token":
			kept = append(kept, pair{"mqauth-token", header.value})
		case strings.HasPrefix(fold(header.name), dead) || !m.kafka() && slices.Contains(onLetters, header.name):
		default:
			kept = append(kept, header)
		}
	}
	if m.headers, ok = merged(kept, metadata); !ok {
		return nil, false
	}
	if m.kafka() {
		parts := recordSource.FindStringSubmatch(said["source"])
		if parts == nil {
			return nil, false
		}
		m.origin = &origin{topic: parts[1], cluster: parts[4], topicID: parts[5]}
		m.origin.partition, _ = strconv.ParseInt(parts[2], 10, 64)
		m.origin.offset, _ = strconv.ParseInt(parts[3], 10, 64)
		return m, true
	}
	m.origin = &origin{queue: said["source"], exchange: names[0], routingKey: names[1], partition: -1, offset: -1}
	for name, text := range l.properties {
		if !slices.Contains(liveProperties, name) {
			m.properties[name] = text
		}
	}
	if live, there := metadata.members["properties"].(*object); there {
		for _, name := range live.names {
			text, is := live.members[name].(string)
			if !is {
				return nil, false
			}
			if slices.Contains(liveProperties, name) {
				m.properties[name] = text
			}
		}
	}
	return m, true
}

// merged puts the headers of the metadata back into their places.
func merged(kept []pair, metadata *object) ([]pair, bool) {
	moved, _ := metadata.members["headers"].([]any)
	places, _ := metadata.members["places"].([]any)
	if len(moved) != len(places) {
		return nil, false
	}
	at := map[int64]pair{}
	for i, place := range places {
		n, whole := natural(place)
		two, is := moved[i].([]any)
		if !whole || n >= int64(len(kept)+len(moved)) || !is || len(two) != 2 {
			return nil, false
		}
		name, text := two[0].(string)
		value, read := tagged(two[1], 32)
		if _, twice := at[n]; !text || !read || twice {
			return nil, false
		}
		at[n] = pair{name, value}
	}
	found := []pair{}
	for n := range int64(len(kept) + len(moved)) {
		if header, there := at[n]; there {
			found = append(found, header)
		} else {
			found, kept = append(found, kept[0]), kept[1:]
		}
	}
	return found, true
}

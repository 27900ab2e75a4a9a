package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// timestamp is AMQP's T, in seconds since 1970; decimal is AMQP's D, as text; pair is a field of a table.
type (
	timestamp int64
	decimal   string
	table     []pair
	pair      struct {
		name  string
		value any
	}
)

var seven = []string{"content-type", "content-encoding", "type", "message-id", "correlation-id", "reply-to", "app-id"}

const directReply = "amq.rabbitmq.reply-to"

var errNoEncoding = errors.New("a value without encoding")

// origin is what the broker says of a delivery; unknown numbers are -1.
type origin struct {
	scope, cluster, topic, topicID, queue, exchange, routingKey string
	partition, offset, timestampMS                              int64
	redelivered, append                                         bool
}

// message is what the profile calls one; nil is no body and no record key.
type message struct {
	destination string
	body, key   []byte
	properties  map[string]string
	headers     []pair
	origin      *origin
}

func (m *message) kafka() bool { return strings.HasPrefix(m.destination, "kafka:") }

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

// unb64 decodes canonical base64url (section 2).
func unb64(text string) ([]byte, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return raw, err == nil && b64(raw) == text
}

func digest(raw []byte) string {
	found := sha256.Sum256(raw)
	return b64(found[:])
}

func count(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

func sized(raw []byte) []byte { return append(count(len(raw)), raw...) }

// encoded appends the encoding of a value (section 5); deep is how many containers may still open.
func encoded(out *bytes.Buffer, value any, deep int) error {
	tagged := func(tag byte, raw []byte) {
		out.WriteByte(tag)
		out.Write(sized(raw))
	}
	switch v := value.(type) {
	case nil:
		out.WriteByte('n')
	case bool:
		out.WriteByte('t')
		if v {
			out.WriteByte(1)
		} else {
			out.WriteByte(0)
		}
	case int64:
		tagged('i', []byte(strconv.FormatInt(v, 10)))
	case float64:
		bits := math.Float64bits(v)
		if v != v {
			bits = 0x7ff8000000000000
		}
		out.WriteByte('d')
		out.Write(binary.BigEndian.AppendUint64(nil, bits))
	case string:
		tagged('s', []byte(v))
	case []byte:
		tagged('b', v)
	case timestamp:
		if v < 0 || v >= 1<<32 {
			return errNoEncoding
		}
		tagged('T', []byte(strconv.FormatInt(int64(v), 10)))
	case decimal:
		if !v.carried() {
			return errNoEncoding
		}
		tagged('D', []byte(v))
	case []any:
		return container(out, 'l', len(v), deep, func() error {
			for _, item := range v {
				if err := encoded(out, item, deep-1); err != nil {
					return err
				}
			}
			return nil
		})
	case table:
		sorted := append(table{}, v...)
		sort.Slice(sorted, func(i, j int) bool { return sorted[i].name < sorted[j].name })
		return container(out, 'm', len(v), deep, func() error {
			for _, field := range sorted {
				tagged('k', []byte(field.name))
				if err := encoded(out, field.value, deep-1); err != nil {
					return err
				}
			}
			return nil
		})
	default:
		return errNoEncoding
	}
	return nil
}

func container(out *bytes.Buffer, tag byte, n, deep int, fill func() error) error {
	if deep == 0 {
		return errNoEncoding
	}
	out.WriteByte(tag)
	out.Write(count(n))
	return fill()
}

// carried tells whether AMQP can carry a decimal: a signed unscaled value of 32 bits, a scale to 255, no sign on zero.
func (d decimal) carried() bool {
	whole, fraction, _ := strings.Cut(string(d), ".")
	unscaled, ok := new(big.Int).SetString(whole+fraction, 10)
	if !ok || len(fraction) > 255 || !unscaled.IsInt64() {
		return false
	}
	v := unscaled.Int64()
	return v >= math.MinInt32 && v <= math.MaxInt32 && !(v == 0 && d[0] == '-')
}

func named(out *bytes.Buffer, name string, values []any) error {
	out.WriteByte('h')
	out.Write(sized([]byte(name)))
	out.Write(count(len(values)))
	for _, value := range values {
		if err := encoded(out, value, 32); err != nil {
			return err
		}
	}
	return nil
}

func (m *message) occurrences(name string) []any {
	var found []any
	for _, header := range m.headers {
		if header.name == name {
			found = append(found, header.value)
		}
	}
	return found
}

// property returns the occurrences of one of the seven properties.
func (m *message) property(name string) []any {
	if m.kafka() {
		return m.occurrences(name)
	}
	text, there := m.properties[name]
	if !there {
		return nil
	}
	if name == "reply-to" && strings.HasPrefix(text, directReply+".") {
		text = directReply
	}
	return []any{text}
}

// headersInput returns the bytes that hds is the digest of (section 5).
func (m *message) headersInput(names []string) ([]byte, error) {
	out := bytes.NewBufferString("mqauth-hds-1")
	for _, name := range seven {
		if err := named(out, name, m.property(name)); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if err := named(out, name, m.occurrences(name)); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// fold lowers A to Z, and nothing else (section 3).
func fold(name string) string {
	raw := []byte(name)
	for i, c := range raw {
		if c >= 'A' && c <= 'Z' {
			raw[i] = c + 'a' - 'A'
		}
	}
	return string(raw)
}

// twins tells whether a name differs from a covered one in case only.
func (m *message) twins(names []string) bool {
	covered := map[string]string{}
	all := names
	if m.kafka() {
		all = append(append([]string{}, seven...), names...)
	}
	for _, name := range all {
		if other, ok := covered[fold(name)]; ok && other != name {
			return true
		}
		covered[fold(name)] = name
	}
	for _, header := range m.headers {
		if other, ok := covered[fold(header.name)]; ok && other != header.name {
			return true
		}
	}
	return false
}

func unreserved(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func percent(text string) string {
	var out strings.Builder
	for i := range len(text) {
		if unreserved(text[i]) {
			out.WriteByte(text[i])
		} else {
			out.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(text[i])+0x100, 16)[1:]))
		}
	}
	return out.String()
}

func unpercent(part string) (string, bool) {
	var raw []byte
	for i := 0; i < len(part); i++ {
		if part[i] != '%' {
			raw = append(raw, part[i])
			continue
		}
		if i+2 >= len(part) {
			return "", false
		}
		v, err := strconv.ParseUint(part[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		raw = append(raw, byte(v))
		i += 2
	}
	return string(raw), utf8.Valid(raw) && percent(string(raw)) == part
}

func rabbitDestination(exchange, key string) string {
	return "rabbitmq:" + percent(exchange) + "/" + percent(key)
}

func kafkaDestination(topic string) string { return "kafka:" + percent(topic) }

// placeNames returns the names in a destination (section 4): a topic, or an exchange and a routing key.
func placeNames(text string) ([]string, bool) {
	kind, rest, _ := strings.Cut(text, ":")
	parts := strings.Split(rest, "/")
	if kind != "kafka" && kind != "rabbitmq" || (kind == "kafka") != (len(parts) == 1) || len(parts) > 2 {
		return nil, false
	}
	for i, part := range parts {
		name, ok := unpercent(part)
		if !ok || kind == "kafka" && name == "" {
			return nil, false
		}
		parts[i] = name
	}
	return parts, true
}

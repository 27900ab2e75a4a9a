package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/blake2b"
)

type vector struct {
	Name     string
	Consumer string
	Received int64
	Message  json.RawMessage
	Verdict  string
	Reason   *string
	Cause    *string
	Held     bool
	KeySet   string `json:"key_set"`
}

type sequence struct {
	Name       string
	Deliveries []vector
}

// longSet is the key set of an authority, with its one cut-off so many times.
type longSet struct {
	Like    string
	Cutoffs int
}

type vectorFile struct {
	Received  int64
	Consumer  json.RawMessage
	Consumers map[string]json.RawMessage
	KeySets   map[string]json.RawMessage `json:"key_sets"`
	LongSets  map[string]longSet         `json:"long_key_sets"`
	Vectors   []vector
	Sequences []sequence
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// deliver judges a message in its JSON form and confirms it where it was accepted, unless it is held.
func (c *consumer) deliver(v *vector, received int64) verdict {
	m, err := fromForm(v.Message)
	if err != nil {
		return rejected("message_malformed")
	}
	found := c.judge(m, received)
	for _, taken := range found.taken {
		taken.done = taken.done || !v.Held
	}
	return found.verdict
}

type report struct {
	passed int
	failed []string
}

func (r *report) check(holds bool, text string, about ...any) {
	if holds {
		r.passed++
	} else {
		r.failed = append(r.failed, fmt.Sprintf(text, about...))
	}
}

func text(value *string) string {
	if value == nil {
		return ""
	}
	return *value
}

func (r *report) judged(file, name string, v *vector, found verdict) {
	expected := verdict{v.Verdict, text(v.Reason), text(v.Cause)}
	if v.Cause == nil {
		found.cause = ""
	}
	r.check(found == expected, "%s: %s: %v is not %v", file, name, found, expected)
}

func (r *report) messages(file string, f *vectorFile) {
	consumerOf := func(name string) *consumer {
		var form consumerForm
		for _, said := range []json.RawMessage{f.Consumer, f.Consumers[name]} {
			if said != nil && json.Unmarshal(said, &form) != nil {
				panic(name)
			}
		}
		if form.KeySet != "" {
			form.JWKS = f.KeySets[form.KeySet]
		}
		return form.consumer()
	}
	moment := func(v *vector) int64 {
		if v.Received > 0 {
			return v.Received
		}
		return f.Received
	}
	var issuer string
	if f.Consumer != nil {
		var common consumerForm
		must(0, json.Unmarshal(f.Consumer, &common))
		issuer = common.Issuer
	}
	for _, v := range f.Vectors {
		c := consumerOf(v.Consumer)
		f.turn(c, issuer, v.KeySet)
		r.judged(file, v.Name, &v, c.deliver(&v, moment(&v)))
	}
	for _, s := range f.Sequences {
		var c *consumer
		for i, v := range s.Deliveries {
			if i == 0 {
				c = consumerOf(v.Consumer)
			}
			f.turn(c, issuer, v.KeySet)
			r.judged(file, fmt.Sprintf("%s, %d", s.Name, i), &v, c.deliver(&v, moment(&v)))
		}
	}
}

// turn gives a consumer the key set of a delivery: of its authority, where the file has one, else of its issuer.
func (f *vectorFile) turn(c *consumer, issuer, name string) {
	if len(f.LongSets) == 0 && name != "" {
		c.issuers[issuer] = must(loadSet(f.KeySets[name]))
	}
	for _, d := range c.domains {
		if name == "" && d.keys == nil {
			name = "honest"
		}
		if name != "" {
			d.turn(f.keySet(name))
		}
	}
}

func (f *vectorFile) keySet(name string) []byte {
	long, is := f.LongSets[name]
	if !is {
		return f.KeySets[name]
	}
	var set map[string]any
	must(0, json.Unmarshal(f.KeySets[long.Like], &set))
	set["mqauth_cutoff"] = slices.Repeat(set["mqauth_cutoff"].([]any), long.Cutoffs)
	return must(json.Marshal(set))
}

func load(folder, name string, into any) {
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(folder, name))), into); err != nil {
		panic(err)
	}
}

func (r *report) encodings(folder string) {
	var hds struct {
		Vectors []struct {
			Name, Hds string
			Message   json.RawMessage
			Hdr       []string
			InputHex  string `json:"input_hex"`
		}
		Covers, Refused []struct {
			Name    string
			Message json.RawMessage
			Hdr     []string
		}
	}
	load(folder, "hds.json", &hds)
	for _, v := range hds.Covers {
		names := must(fromForm(v.Message)).application()
		r.check(slices.Equal(names, v.Hdr), "hds.json: covers %s: %v", v.Name, names)
	}
	for _, v := range hds.Refused {
		_, err := must(fromForm(v.Message)).bind()
		r.check(err != nil, "hds.json: refused %s", v.Name)
	}
	for _, v := range hds.Vectors {
		raw, err := must(fromForm(v.Message)).headersInput(v.Hdr)
		r.check(err == nil && hex.EncodeToString(raw) == v.InputHex && digest(raw) == v.Hds, "hds.json: %s", v.Name)
	}
	var places struct {
		Rabbitmq []struct {
			Exchange, Destination string
			RoutingKey            string `json:"routing_key"`
		}
		Kafka     []struct{ Topic, Destination string }
		Malformed []string
	}
	load(folder, "destinations.json", &places)
	for _, v := range places.Rabbitmq {
		names, ok := placeNames(v.Destination)
		holds := ok && rabbitDestination(v.Exchange, v.RoutingKey) == v.Destination
		r.check(holds && slices.Equal(names, []string{v.Exchange, v.RoutingKey}), "destinations.json: %s", v.Destination)
	}
	for _, v := range places.Kafka {
		names, ok := placeNames(v.Destination)
		holds := ok && kafkaDestination(v.Topic) == v.Destination && names[0] == v.Topic
		r.check(holds, "destinations.json: %s", v.Destination)
	}
	for _, bad := range places.Malformed {
		_, ok := placeNames(bad)
		r.check(!ok, "destinations.json: malformed %q", bad)
	}
}

func (r *report) ids(folder string) {
	type id struct {
		Iss, Sub, Jti, Letter string
		Index                 *int64
		InputHex              string `json:"input_hex"`
		IDHex                 string `json:"id_hex"`
	}
	var found struct{ Messages, Releases []id }
	load(folder, "claims.json", &found)
	for _, v := range found.Messages {
		input, index := claimInput(v.Iss, v.Sub, v.Jti), int64(0)
		if v.Index != nil {
			index = *v.Index
		}
		holds := hex.EncodeToString(input) == v.InputHex
		made := hex.EncodeToString([]byte(claimID(input, index, v.Index != nil)))
		r.check(holds && made == v.IDHex, "claims.json: %s %s", v.Iss, v.Sub)
	}
	for _, v := range found.Releases {
		one := &release{iss: v.Iss, letter: v.Letter}
		holds := hex.EncodeToString(one.input()) == v.InputHex && hex.EncodeToString([]byte(one.id())) == v.IDHex
		r.check(holds, "claims.json: release of %s", v.Iss)
	}
}

func (r *report) sets(folder string) {
	var found struct {
		Vectors []struct {
			Name, Becomes string
			JWK           json.RawMessage
		}
		Sets []struct {
			Name string
			Keys json.RawMessage
			Used []string
		}
		NoSets []string `json:"no_sets"`
		Sizes  []struct {
			Text  string
			Bytes int
			IsSet bool `json:"is_set"`
		}
	}
	load(folder, "jwks.json", &found)
	for _, v := range found.Vectors {
		keys, err := loadSet(fmt.Appendf(nil, `{"keys":[%s]}`, v.JWK))
		becomes := "unused"
		for _, k := range keys {
			becomes = map[bool]string{true: "revoked", false: "used"}[k.revokedAt == 0]
		}
		r.check(err == nil && becomes == v.Becomes, "jwks.json: %s: %s is not %s", v.Name, becomes, v.Becomes)
	}
	for _, v := range found.Sets {
		keys, err := loadSet(fmt.Appendf(nil, `{"keys":%s}`, v.Keys))
		used := slices.Sorted(maps.Keys(keys))
		r.check(err == nil && slices.Equal(used, slices.Sorted(slices.Values(v.Used))), "jwks.json: %s: %v", v.Name, used)
	}
	for _, bad := range found.NoSets {
		_, err := loadSet([]byte(bad))
		r.check(err != nil, "jwks.json: no set %s", bad)
	}
	for _, v := range found.Sizes {
		_, err := loadSet(append([]byte(v.Text), bytes.Repeat([]byte(" "), v.Bytes-len(v.Text))...))
		r.check((err == nil) == v.IsSet, "jwks.json: a set of %d bytes", v.Bytes)
	}
}

func (r *report) forms(folder string) {
	var found struct {
		Same []struct {
			Name        string
			Form, Other json.RawMessage
		}
		Malformed []struct {
			Name string
			Form json.RawMessage
		}
		Texts []struct {
			Text string
			Form json.RawMessage
		}
	}
	load(folder, "forms.json", &found)
	for _, v := range found.Same {
		one, err := fromForm(v.Form)
		other, err2 := fromForm(v.Other)
		alike := err == nil && err2 == nil && reflect.DeepEqual(one, other)
		r.check(alike, "forms.json: %s", v.Name)
	}
	for _, v := range found.Malformed {
		_, err := fromForm(v.Form)
		r.check(err != nil, "forms.json: malformed: %s", v.Name)
	}
	for _, v := range found.Texts {
		one, err := fromForm([]byte(v.Text))
		if isNull(v.Form) {
			r.check(err != nil, "forms.json: no message: %s", v.Text)
		} else {
			r.check(err == nil && reflect.DeepEqual(one, must(fromForm(v.Form))), "forms.json: %s", v.Text)
		}
	}
}

// vectors replays every file of vectors in a folder.
func vectors(folder string) *report {
	r := &report{}
	for _, path := range must(filepath.Glob(filepath.Join(folder, "*.json"))) {
		var f vectorFile
		switch file := filepath.Base(path); file {
		case "tokens.json", "answers.json", "batch.json", "settings.json", "identity.json":
			load(folder, file, &f)
			r.messages(file, &f)
		case "hds.json":
			r.encodings(folder)
		case "claims.json":
			r.ids(folder)
		case "jwks.json":
			r.sets(folder)
		case "forms.json":
			r.forms(folder)
		case "stores.json":
			r.stores(folder)
		case "letters.json":
			r.letters(folder)
		case "destinations.json":
		default:
			r.check(false, "%s: a file of vectors that nothing here reads", file)
		}
	}
	r.trees(folder)
	return r
}

// letters makes and reads dead letters. What is JSON in a letter may have its members in any order.
func (r *report) letters(folder string) {
	var found struct {
		Made []struct {
			Name, Scope, Source, Reason, Detail, Audit, Digest, ID, Form string
			Error, Rung                                                  *string
			Message, Letter                                              json.RawMessage
			Time                                                         int64
			Past                                                         *struct {
				Count int64
				Hops  []hop
			}
		}
		Read []struct {
			Name   string
			Letter json.RawMessage
			Intact bool
		}
	}
	load(folder, "letters.json", &found)
	for _, v := range found.Made {
		m := must(fromForm(v.Message))
		l := &letter{
			m: m, scope: v.Scope, reason: v.Reason, detail: v.Detail, audit: v.Audit, failure: v.Error, rung: v.Rung,
			millis: v.Time,
		}
		if v.Past != nil {
			l.earlier, l.hops = v.Past.Count, v.Past.Hops
		}
		r.check(m.source() == v.Source, "letters.json: %s: the source is %s", v.Name, m.source())
		r.check(m.contentDigest() == v.Digest, "letters.json: %s: the digest", v.Name)
		r.check(m.letterID(v.Scope) == v.ID, "letters.json: %s: the id", v.Name)
		made := map[string]func() *message{"whole": l.whole, "json": l.inBody, "reference": l.reference}[v.Form]()
		expected := must(fromForm(v.Letter))
		r.check(made.plain() == expected.plain(), "letters.json: %s: the letter\n%s\n%s", v.Name,
			made.plain(), expected.plain())
	}
	for _, v := range found.Read {
		r.check(intact(must(fromForm(v.Letter))) == v.Intact, "letters.json: %s: read", v.Name)
	}
}

// plain is what two equal letters have in common, their JSON parsed.
func (m *message) plain() string {
	var body any = m.body
	if json.Unmarshal(m.body, &body) != nil {
		body = m.body
	}
	headers := []any{}
	for _, header := range m.headers {
		var value any = header.value
		if header.name == dead+"metadata" || header.name == dead+"history" {
			raw, is := header.value.([]byte)
			if !is {
				raw = []byte(header.value.(string))
			}
			_ = json.Unmarshal(raw, &value)
		}
		headers = append(headers, header.name, value)
	}
	return fmt.Sprintf("%#v", []any{m.key, m.properties, headers, body})
}

// stores holds what implementations share beside messages (section 18).
func (r *report) stores(folder string) {
	var found struct {
		Redis []struct {
			Name, Scope, Owner string
			Index              *int64
			Place              []any
			IDHex              string `json:"id_hex"`
			LeaseEnds          int64  `json:"lease_ends"`
			KeyHex             string `json:"key_hex"`
			HeldHex            string `json:"held_hex"`
			DoneHex            string `json:"done_hex"`
		}
		Audit []string
	}
	load(folder, "stores.json", &found)
	for _, v := range found.Redis {
		key := "mqauth:{" + v.Scope + "}:" + string(must(hex.DecodeString(v.IDHex)))
		if v.Index != nil {
			key = key[:len(key)-2] + "~"
		}
		place := ""
		if v.Place != nil {
			size := len([]rune(v.Place[0].(string)))
			text := fmt.Sprintf("%d ", size) + fmt.Sprintf("%s/%s/%.0f/%.0f", v.Place...)
			hash := must(blake2b.New(12, nil))
			hash.Write([]byte(text))
			place = string(hash.Sum(nil))
		}
		held := fmt.Sprintf("h%d %d %s", v.LeaseEnds, len(v.Owner), v.Owner) + place
		holds := hex.EncodeToString([]byte(key)) == v.KeyHex && hex.EncodeToString([]byte(held)) == v.HeldHex
		r.check(holds && hex.EncodeToString([]byte("d"+place)) == v.DoneHex, "stores.json: %s", v.Name)
	}
	form := regexp.MustCompile(`\A(.*,"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}\z`)
	previous := strings.Repeat("0", 64)
	for i, line := range found.Audit {
		parts := form.FindStringSubmatch(line)
		holds := parts != nil && parts[2] == previous && hexSum([]byte(previous+parts[1]+"}")) == parts[3]
		r.check(holds, "stores.json: line %d of an audit file", i)
		previous = parts[3]
	}
}

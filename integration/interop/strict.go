package main

import (
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// object is a JSON object, in the order of its text.
type object struct {
	names   []string
	members map[string]any
}

// number is a JSON number as it was written.
type number string

var errStrict = errors.New("no strict JSON")

// whole returns the integer, where the text has neither fraction nor exponent.
func (n number) whole() (int64, bool) {
	for _, c := range n {
		if c == '.' || c == 'e' || c == 'E' {
			return 0, false
		}
	}
	v, err := strconv.ParseInt(string(n), 10, 64)
	return v, err == nil
}

type reader struct {
	text  []byte
	at    int
	depth int
	wide  bool
}

// parse reads strict JSON (section 2); wide allows integers of 64 bits (section 9).
func parse(text []byte, depth int, wide bool) (any, error) {
	if !utf8.Valid(text) {
		return nil, errStrict
	}
	r := &reader{text: text, depth: depth, wide: wide}
	value, err := r.value()
	if err != nil {
		return nil, err
	}
	r.space()
	if r.at != len(text) {
		return nil, errStrict
	}
	return value, nil
}

func (r *reader) space() {
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case ' ', '\t', '\r', '\n':
			r.at++
		default:
			return
		}
	}
}

func (r *reader) peek() byte {
	r.space()
	if r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

func (r *reader) take(c byte) bool {
	if r.peek() == c && r.at < len(r.text) {
		r.at++
		return true
	}
	return false
}

func (r *reader) word(text string, value any) (any, error) {
	if len(r.text)-r.at >= len(text) && string(r.text[r.at:r.at+len(text)]) == text {
		r.at += len(text)
		return value, nil
	}
	return nil, errStrict
}

func (r *reader) value() (any, error) {
	switch c := r.peek(); c {
	case '{', '[':
		if r.depth == 0 {
			return nil, errStrict
		}
		r.depth--
		defer func() { r.depth++ }()
		r.at++
		if c == '{' {
			return r.object()
		}
		return r.list()
	case '"':
		return r.text_()
	case 't':
		return r.word("true", true)
	case 'f':
		return r.word("false", false)
	case 'n':
		return r.word("null", nil)
	default:
		return r.number()
	}
}

func (r *reader) object() (any, error) {
	found := &object{members: map[string]any{}}
	if r.take('}') {
		return found, nil
	}
	for {
		if r.peek() != '"' {
			return nil, errStrict
		}
		name, err := r.text_()
		if err != nil || !r.take(':') {
			return nil, errStrict
		}
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		if _, twice := found.members[name]; twice {
			return nil, errStrict
		}
		found.names = append(found.names, name)
		found.members[name] = value
		if r.take('}') {
			return found, nil
		}
		if !r.take(',') {
			return nil, errStrict
		}
	}
}

func (r *reader) list() (any, error) {
	found := []any{}
	if r.take(']') {
		return found, nil
	}
	for {
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		found = append(found, value)
		if r.take(']') {
			return found, nil
		}
		if !r.take(',') {
			return nil, errStrict
		}
	}
}

func (r *reader) unit() (rune, error) {
	if len(r.text)-r.at < 4 {
		return 0, errStrict
	}
	v, err := strconv.ParseUint(string(r.text[r.at:r.at+4]), 16, 16)
	if err != nil {
		return 0, errStrict
	}
	r.at += 4
	return rune(v), nil
}

func (r *reader) escaped() (rune, error) {
	first, err := r.unit()
	if err != nil || first < 0xD800 || first > 0xDFFF {
		return first, err
	}
	if first > 0xDBFF || len(r.text)-r.at < 6 || r.text[r.at] != '\\' || r.text[r.at+1] != 'u' {
		return 0, errStrict
	}
	r.at += 2
	second, err := r.unit()
	if err != nil || second < 0xDC00 || second > 0xDFFF {
		return 0, errStrict
	}
	return (first-0xD800)<<10 + (second - 0xDC00) + 0x10000, nil
}

var escapes = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (r *reader) text_() (string, error) {
	r.at++
	var found []byte
	for r.at < len(r.text) {
		c := r.text[r.at]
		r.at++
		switch {
		case c == '"':
			return string(found), nil
		case c < 0x20:
			return "", errStrict
		case c != '\\':
			found = append(found, c)
		case r.at == len(r.text):
			return "", errStrict
		case r.text[r.at] == 'u':
			r.at++
			character, err := r.escaped()
			if err != nil {
				return "", err
			}
			found = utf8.AppendRune(found, character)
		default:
			plain, ok := escapes[r.text[r.at]]
			if !ok {
				return "", errStrict
			}
			r.at++
			found = append(found, plain)
		}
	}
	return "", errStrict
}

func (r *reader) digits() int {
	start := r.at
	for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
		r.at++
	}
	return r.at - start
}

func (r *reader) next(set string) bool {
	if r.at < len(r.text) {
		for i := range set {
			if r.text[r.at] == set[i] {
				r.at++
				return true
			}
		}
	}
	return false
}

func (r *reader) number() (any, error) {
	start, whole := r.at, true
	r.next("-")
	if !r.next("0") && r.digits() == 0 {
		return nil, errStrict
	}
	if r.next(".") {
		whole = false
		if r.digits() == 0 {
			return nil, errStrict
		}
	}
	if r.next("eE") {
		whole = false
		r.next("+-")
		if r.digits() == 0 {
			return nil, errStrict
		}
	}
	found := number(r.text[start:r.at])
	if !whole {
		v, err := strconv.ParseFloat(string(found), 64)
		if err != nil && math.IsInf(v, 0) {
			return nil, errStrict
		}
		return found, nil
	}
	v, ok := found.whole()
	if !ok || !r.wide && (v > 1<<53 || v < -1<<53) {
		return nil, errStrict
	}
	return found, nil
}

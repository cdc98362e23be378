// The pump's thread. See pump.h.
#include "pump.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>

namespace enforcer {

namespace {

constexpr int kPipeOctets = 256 << 10;     // within fs.pipe-max-size, so no capability is needed
constexpr size_t kPipes = 2048;            // in use, of all; two descriptors each
constexpr size_t kPipesOfOwner = 128;      // at most,
constexpr size_t kPipesSure = 4;           // and though all others are in use
constexpr size_t kPipesKept = 16;          // empty ones
constexpr size_t kTurnOctets = 256 << 10;  // of one direction, before others have their turn
constexpr size_t kCopyOctets = 64 << 10;
constexpr size_t kStackOctets = 256 << 10;

// Interrupted calls are made again.
template <typename Call>
auto Again(Call call) {
  for (;;) {
    auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

size_t Held(const Way& way) { return way.piped + way.first.size() - way.firstSent; }

}  // namespace

int Pump::Start(const char** what) {
  *what = "epoll_create1";
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return errno;
  *what = "eventfd";
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return errno;
  ended_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!ended_.valid()) return errno;
  *what = "epoll_ctl";
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = 0;  // no pair has this id
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) return errno;

  *what = "pthread_create";
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, std::max<size_t>(kStackOctets, PTHREAD_STACK_MIN));
  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(
      &thread_, &attributes,
      [](void* self) -> void* {
        static_cast<Pump*>(self)->Run();
        return nullptr;
      },
      this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  started_ = error == 0;
  if (started_) pthread_setname_np(thread_, "enf-splice");
  return error;
}

Pump::~Pump() {
  if (!started_) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  Wake();
  pthread_join(thread_, nullptr);
}

void Pump::Wake() {
  uint64_t one = 1;
  Again([&] { return write(wake_.get(), &one, sizeof one); });
}

void Pump::Add(std::shared_ptr<Pair> pair) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    added_.push_back(std::move(pair));
  }
  Wake();
}

void Pump::Condemn(const std::shared_ptr<Pair>& pair) {
  pair->condemned = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    condemned_.push_back(pair->id);
  }
  Wake();
}

std::vector<uint64_t> Pump::TakeEnded() {
  uint64_t count = 0;
  Again([&] { return read(ended_.get(), &count, sizeof count); });
  std::vector<uint64_t> ids;
  std::lock_guard<std::mutex> lock(mutex_);
  ids.swap(endedIds_);
  return ids;
}

// ---- the thread ---------------------------------------------------------------------------------------------------------

void Pump::Run() {
  epoll_event events[256];
  for (;;) {
    int count = epoll_wait(epoll_.get(), events, 256, ready_.empty() ? -1 : 0);
    bool woken = false;
    for (int i = 0; i < count; i++) {
      uint64_t data = events[i].data.u64;
      if (data == 0) {
        woken = true;
        continue;
      }
      auto found = pairs_.find(data >> 1);
      if (found == pairs_.end()) continue;  // ended since
      Pair& pair = *found->second;
      int side = static_cast<int>(data & 1);
      uint32_t seen = events[i].events;
      if (seen & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) pair.readable[side] = true;
      if (seen & (EPOLLOUT | EPOLLHUP | EPOLLERR)) pair.writable[side] = true;
      if (seen & EPOLLPRI) pair.way[side].copying = true;
      if (seen & EPOLLERR) pair.broken[side] = true;
      Queue(pair);
    }
    if (woken && !TakeCommands()) break;
    // Each owner once, with what it has queued now or what makes up one turn; then whatever has become ready meanwhile has its place.
    for (size_t owners = ready_.size(); owners > 0; owners--) {
      Owner& owner = *ready_.front();
      ready_.pop_front();
      size_t moved = 0;
      for (size_t left = owner.queue.size(); left > 0 && moved < kTurnOctets; left--) {
        auto found = pairs_.find(owner.queue.front());
        owner.queue.pop_front();
        if (found == pairs_.end()) continue;  // ended since
        found->second->queued = false;
        moved += Turn(*found->second);
      }
      owner.ready = !owner.queue.empty();
      if (owner.ready) ready_.push_back(&owner);
    }
  }
  while (!pairs_.empty()) Finish(*pairs_.begin()->second, true);
}

// False when the pump ends.
bool Pump::TakeCommands() {
  std::vector<std::shared_ptr<Pair>> added;
  std::vector<uint64_t> condemned;
  bool stop;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    uint64_t count = 0;
    Again([&] { return read(wake_.get(), &count, sizeof count); });
    stop = stop_;
    added.swap(added_);
    condemned.swap(condemned_);
  }
  for (std::shared_ptr<Pair>& pair : added) {
    uint64_t id = pair->id;
    Pair& one = *pair;
    pairs_.emplace(id, std::move(pair));
    bool watched = true;
    for (int side = 0; side < 2 && watched; side++) {
      epoll_event event = {};
      event.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET;
      event.data.u64 = id << 1 | static_cast<uint64_t>(side);
      watched = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, one.side[side].get(), &event) == 0;
    }
    if (watched) Queue(one);
    else Finish(one, true);
  }
  for (uint64_t id : condemned) {
    auto found = pairs_.find(id);
    if (found != pairs_.end()) Finish(*found->second, true);
  }
  return !stop;
}

void Pump::Queue(Pair& pair) {
  if (pair.queued) return;
  pair.queued = true;
  Owner& owner = owners_[pair.owner];
  owner.queue.push_back(pair.id);
  if (owner.ready) return;
  owner.ready = true;
  ready_.push_back(&owner);
}

// Octets moved.
size_t Pump::Turn(Pair& pair) {
  const uint64_t before = pair.passed[0] + pair.passed[1];
  Result result[2] = {Result::kIdle, Result::kIdle};
  for (int from = 0; from < 2; from++) {
    if (!pair.broken[1 - from]) result[from] = Move(pair, from, kTurnOctets);
  }
  const size_t moved = pair.passed[0] + pair.passed[1] - before;
  bool broken = result[0] == Result::kBroken || result[1] == Result::kBroken;
  // A reset: what came before it was passed on as far as the other side takes it at once.
  if (broken || pair.broken[0] || pair.broken[1] || pair.condemned) Finish(pair, true);
  else if (pair.way[0].shut && pair.way[1].shut) Finish(pair, false);
  else if (result[0] == Result::kMore || result[1] == Result::kMore) Queue(pair);
  return moved;
}

Pump::Result Pump::Move(Pair& pair, int from, size_t budget) {
  Way& way = pair.way[from];
  const int to = 1 - from;
  const uint64_t limit = pair.passed[from] + budget;
  Result result = Result::kIdle;
  while (!way.shut) {
    if (pair.condemned) {
      result = Result::kBroken;
      break;
    }
    const bool waiting = way.firstSent < way.first.size() || way.piped > 0;
    if (way.ended && !waiting) {
      // ENOTCONN: it has gone in good order meanwhile.
      if (shutdown(pair.side[to].get(), SHUT_WR) != 0 && errno != ENOTCONN) result = Result::kBroken;
      way.shut = true;
      break;
    }
    // Nothing is read that could not leave.
    if (!pair.writable[to] || !(waiting || pair.readable[from])) break;
    if (pair.passed[from] >= limit) {
      result = Result::kMore;
      break;
    }
    result = waiting ? Drain(pair, from) : way.copying ? Copy(pair, from) : Fill(pair, from);
    if (result != Result::kMore) break;
    result = Result::kIdle;
  }
  if (way.piped == 0) PutPipe(pair, way);
  pair.held = Held(pair.way[0]) + Held(pair.way[1]);
  return result;
}

// What was read goes out. kMore: some of it did.
Pump::Result Pump::Drain(Pair& pair, int from) {
  Way& way = pair.way[from];
  const int to = 1 - from;
  const bool first = way.firstSent < way.first.size();
  ssize_t sent = Again([&] {
    return first ? send(pair.side[to].get(), way.first.data() + way.firstSent, way.first.size() - way.firstSent, MSG_DONTWAIT | MSG_NOSIGNAL)
                 : splice(way.out.get(), nullptr, pair.side[to].get(), nullptr, way.piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  });
  if (sent < 0 && errno == EAGAIN) {
    pair.writable[to] = false;
    return Result::kIdle;
  }
  if (sent <= 0) return Result::kBroken;
  pair.passed[from] += static_cast<uint64_t>(sent);
  if (!first) {
    way.piped -= static_cast<size_t>(sent);
  } else if ((way.firstSent += static_cast<size_t>(sent)) == way.first.size()) {
    way.first = {};
    way.firstSent = 0;
  }
  return Result::kMore;
}

// The pipe, which is empty, is filled. kMore: there is something in it, or the sender has ended.
Pump::Result Pump::Fill(Pair& pair, int from) {
  Way& way = pair.way[from];
  if (!way.out.valid() && !GetPipe(pair, way)) return Copy(pair, from);
  ssize_t got = Again([&] { return splice(pair.side[from].get(), nullptr, way.in.get(), nullptr, kPipeOctets, SPLICE_F_MOVE | SPLICE_F_NONBLOCK); });
  if (got > 0) {
    way.piped = static_cast<size_t>(got);
    return Result::kMore;
  }
  if (got < 0 && errno == EAGAIN) {
    pair.readable[from] = false;
    return Result::kIdle;
  }
  // The kernel does not splice this socket, or has no memory for it: what is wrong with the connection is told by the copying too.
  if (got < 0 && (errno == EINVAL || errno == ENOSYS || errno == EPERM || errno == ENOMEM)) {
    way.copying = true;
    return Result::kMore;
  }
  if (got < 0) return Result::kBroken;
  // Zero is the sender's end, or urgent data with its end behind.
  uint8_t octet;
  ssize_t left = Again([&] { return recv(pair.side[from].get(), &octet, 1, MSG_PEEK | MSG_DONTWAIT); });
  if (left > 0) way.copying = true;
  else if (left < 0) return Result::kBroken;
  else way.ended = true;
  return Result::kMore;
}

// Without a pipe: looked at, sent, and then taken off as far as it was sent, so nothing is kept here.
Pump::Result Pump::Copy(Pair& pair, int from) {
  const int to = 1 - from;
  if (scratch_.empty()) scratch_.resize(kCopyOctets);
  ssize_t got = Again([&] { return recv(pair.side[from].get(), scratch_.data(), scratch_.size(), MSG_PEEK | MSG_DONTWAIT); });
  if (got < 0 && errno == EAGAIN) {
    pair.readable[from] = false;
    return Result::kIdle;
  }
  if (got < 0) return Result::kBroken;
  if (got == 0) {
    pair.way[from].ended = true;
    return Result::kMore;
  }
  ssize_t sent = Again([&] { return send(pair.side[to].get(), scratch_.data(), static_cast<size_t>(got), MSG_DONTWAIT | MSG_NOSIGNAL); });
  if (sent < 0 && errno == EAGAIN) {
    pair.writable[to] = false;
    return Result::kIdle;
  }
  if (sent < 0) return Result::kBroken;
  for (ssize_t off = 0; off < sent;) {
    ssize_t taken = Again([&] { return recv(pair.side[from].get(), scratch_.data(), static_cast<size_t>(sent - off), MSG_DONTWAIT); });
    if (taken <= 0) return Result::kBroken;
    off += taken;
  }
  pair.passed[from] += static_cast<uint64_t>(sent);
  return Result::kMore;
}

bool Pump::GetPipe(Pair& pair, Way& way) {
  size_t& own = owners_[pair.owner].pipes;
  if (own >= kPipesOfOwner || (pipesUsed_ >= kPipes && own >= kPipesSure)) return false;
  if (!pipes_.empty()) {
    way.out = std::move(pipes_.back().out);
    way.in = std::move(pipes_.back().in);
    pipes_.pop_back();
  } else {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return false;
    way.out.reset(ends[0]);
    way.in.reset(ends[1]);
    fcntl(ends[1], F_SETPIPE_SZ, kPipeOctets);  // where that is not to be had, a smaller one does
  }
  own++;
  pipesUsed_++;
  return true;
}

void Pump::PutPipe(Pair& pair, Way& way) {
  if (!way.out.valid()) return;
  if (way.piped == 0 && pipes_.size() < kPipesKept) pipes_.push_back({std::move(way.out), std::move(way.in)});
  way.out.reset();
  way.in.reset();
  owners_[pair.owner].pipes--;
  pipesUsed_--;
}

void Pump::Finish(Pair& pair, bool reset) {
  const uint64_t id = pair.id;
  for (Way& way : pair.way) {
    PutPipe(pair, way);
    way.first = {};
  }
  pair.held = 0;
  for (Fd& side : pair.side) {
    if (reset) {
      linger hard = {1, 0};
      setsockopt(side.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, side.get(), nullptr);
    side.reset();
  }
  pairs_.erase(id);  // pair is gone now
  {
    std::lock_guard<std::mutex> lock(mutex_);
    endedIds_.push_back(id);
  }
  uint64_t one = 1;
  Again([&] { return write(ended_.get(), &one, sizeof one); });
}

}  // namespace enforcer
